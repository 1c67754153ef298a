"""A data directory of its own for every test, and small files to feed the builders with."""

import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from darts_jax.data import cifar
from darts_jax.data.download import Archive


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The default data directory of the test."""
    place = tmp_path / "prepared"
    monkeypatch.setenv("DARTS_JAX_DATA", str(place))
    return place


@pytest.fixture
def image_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes `count` random images a class: `image_folder({"cat": 5, "dog": 4})`."""

    def write(classes: dict[str, int], root: str = "images", size=(8, 8)) -> Path:
        generator = np.random.default_rng(0)
        for name, count in classes.items():
            place = tmp_path / root / name
            place.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                pixels = generator.integers(0, 256, (size[1], size[0], 3), np.uint8)
                Image.fromarray(pixels).save(place / f"{i}.png")
        return tmp_path / root

    return write


def cifar_records(count: int, label_bytes: int, num_classes: int) -> np.ndarray:
    """Random records with labels 0, 1, 2, ...; uint8 `[count, label_bytes + 3072]`."""
    generator = np.random.default_rng(count)
    records = generator.integers(0, 256, (count, label_bytes + 3072), np.uint8)
    records[:, :label_bytes] = (np.arange(count) % num_classes)[:, None]
    if label_bytes == 2:
        records[:, 0] %= 20
    return records


@pytest.fixture
def cifar_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes a small archive of the layout of CIFAR and makes it the expected one.

    `make("cifar10", change=lambda files: ...)` may spoil the members before they are packed.
    Returns (directory of the archive, {member: bytes}).
    """

    def make(name: str, change=lambda files: None) -> tuple[Path, dict[str, bytes]]:
        layout = {"cifar10": cifar.CIFAR10, "cifar100": cifar.CIFAR100}[name]
        label_bytes = 1 + len(layout.extra_labels)
        files = {}
        for i, member in enumerate((*layout.train_files, *layout.test_files)):
            records = cifar_records(20 + i, label_bytes, layout.num_classes)
            files[layout.prefix + member] = records.tobytes()
        names = "\n".join(f"thing{i}" for i in range(layout.num_classes)) + "\n\n"
        files[layout.prefix + layout.names_file] = names.encode()
        change(files)
        directory = tmp_path / "archives"
        directory.mkdir(exist_ok=True)
        path = directory / layout.archive.filename
        with tarfile.open(path, "w:gz") as tar:
            for member, data in files.items():
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        expect(layout, path)
        return directory, files

    def expect(layout: cifar.Cifar, path: Path) -> None:
        data = path.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        archive = Archive(layout.archive.url, len(data), digest)
        attribute = "CIFAR10" if layout.num_classes == 10 else "CIFAR100"
        monkeypatch.setattr(cifar, attribute, layout._replace(archive=archive))

    return make
