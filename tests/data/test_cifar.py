"""CIFAR archives: records, labels, stock compatibility, and every way to be wrong."""

import io
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest

from darts_jax.data import cifar, download, load_dataset
from darts_jax.errors import UserError

PREFIX = {
    name: v.prefix
    for name, v in (("cifar10", cifar.CIFAR10), ("cifar100", cifar.CIFAR100))
}


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_images_and_labels_in_file_order(name: str, cifar_archive) -> None:
    directory, files = cifar_archive(name)
    layout = {"cifar10": cifar.CIFAR10, "cifar100": cifar.CIFAR100}[name]
    dataset = load_dataset(name, path=str(directory))
    width = 3073 if name == "cifar10" else 3074
    data = b"".join(files[layout.prefix + member] for member in layout.train_files)
    records = np.frombuffer(data, np.uint8).reshape(-1, width)
    assert len(dataset.train_images) == len(records)
    np.testing.assert_array_equal(dataset.train_labels, records[:, width - 3073])
    # Record: red plane, green plane, blue plane, row by row.
    red = records[:, -3072:-2048].reshape(-1, 32, 32)
    blue = records[:, -1024:].reshape(-1, 32, 32)
    np.testing.assert_array_equal(dataset.train_images[..., 0], red)
    np.testing.assert_array_equal(dataset.train_images[..., 2], blue)
    assert dataset.class_names[3] == "thing3"


def test_cifar10_has_the_references_statistics(cifar_archive) -> None:
    directory, _ = cifar_archive("cifar10")
    dataset = load_dataset("cifar10", path=str(directory))
    assert dataset.mean == (0.49139968, 0.48215827, 0.44653124)
    assert dataset.std == (0.24703233, 0.24348505, 0.26158768)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_stock_tfds_reads_it_and_we_read_stock(
    name: str, cifar_archive, data_dir: Path
) -> None:
    """Name, version and features are those of tensorflow-datasets' own builders."""
    import tensorflow_datasets as tfds

    directory, _ = cifar_archive(name)
    dataset = load_dataset(name, path=str(directory))
    records = tfds.data_source(name, split="test", data_dir=data_dir, download=False)
    assert len(records) == len(dataset.test_labels)
    record = records[4]
    assert record["id"] == b"test_00004"
    np.testing.assert_array_equal(record["image"], dataset.test_images[4])
    assert record["label"] == dataset.test_labels[4]
    if name == "cifar100":
        assert record["coarse_label"] == dataset.test_labels[4] % 20


def test_path_may_be_the_file_itself(cifar_archive) -> None:
    directory, _ = cifar_archive("cifar10")
    (path,) = directory.iterdir()
    assert load_dataset("cifar10", path=str(path)).num_classes == 10


def test_downloads_directory_is_searched(cifar_archive, data_dir: Path) -> None:
    directory, _ = cifar_archive("cifar10")
    data_dir.mkdir()
    directory.rename(data_dir / "downloads")
    assert load_dataset("cifar10").num_classes == 10


def test_download_is_verified_and_kept(cifar_archive, data_dir, monkeypatch) -> None:
    directory, _ = cifar_archive("cifar10")
    (path,) = directory.iterdir()
    data = path.read_bytes()
    monkeypatch.setattr(
        download.urllib.request, "urlopen", lambda url, timeout: io.BytesIO(data)
    )
    load_dataset("cifar10")
    assert (data_dir / "downloads" / path.name).read_bytes() == data
    # A second data directory, and a line that breaks off half way.
    monkeypatch.setattr(
        download.urllib.request, "urlopen", lambda url, timeout: io.BytesIO(data[:99])
    )
    other = data_dir.with_name("other")
    with pytest.raises(UserError, match="truncated"):
        load_dataset("cifar10", data_dir=str(other))
    assert not [path for path in (other / "downloads").iterdir() if path.is_file()]


def _expect_error(words: str, **options) -> None:
    with pytest.raises(UserError) as caught:
        load_dataset("cifar10", **options)
    assert words in str(caught.value), caught.value
    assert "\n" not in str(caught.value)


def test_no_network_is_one_line_and_quick(monkeypatch) -> None:
    def refuse(url: str, timeout: float):
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(download.urllib.request, "urlopen", refuse)
    for words in (
        "Network is unreachable",
        "cifar-10-binary.tar.gz",
        cifar.CIFAR10.archive.sha256,
        "--config.dataset.path=DIR",
    ):
        _expect_error(words)


def test_a_silent_network_is_given_up(monkeypatch) -> None:
    """A name look-up that hangs must not hang the user."""
    monkeypatch.setattr(download, "CONNECT_SECONDS", 0.2)
    monkeypatch.setattr(
        download.urllib.request, "urlopen", lambda url, timeout: time.sleep(5)
    )
    start = time.monotonic()
    _expect_error("no answer within")
    assert time.monotonic() - start < 3


def test_missing_archive(tmp_path: Path) -> None:
    _expect_error("no cifar-10-binary.tar.gz", path=str(tmp_path))
    _expect_error("no cifar-10-binary.tar.gz", path=str(tmp_path / "nowhere"))


def test_wrong_checksum_and_size(cifar_archive) -> None:
    directory, _ = cifar_archive("cifar10")
    (path,) = directory.iterdir()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    _expect_error("wrong checksum", path=str(directory))
    path.write_bytes(data[:-10])
    _expect_error("truncated", path=str(directory))


def test_truncated_archive_with_a_matching_checksum(cifar_archive, monkeypatch) -> None:
    directory, _ = cifar_archive("cifar10")
    (path,) = directory.iterdir()
    path.write_bytes(path.read_bytes()[:5000])
    monkeypatch.setattr(download, "_verify", lambda path, archive: None)
    _expect_error("truncated or damaged", path=str(directory))
    path.write_bytes(b"not a tar file at all")
    _expect_error("truncated or damaged", path=str(directory))


def test_damaged_members(cifar_archive) -> None:
    first = PREFIX["cifar10"] + "data_batch_1.bin"
    names = PREFIX["cifar10"] + "batches.meta.txt"

    def bad_label(files: dict[str, bytes]) -> None:
        files[first] = files[first][: 3073 * 2] + b"\x0b" + files[first][3073 * 2 + 1 :]

    for change, words in (
        (bad_label, "label 11 of image 2 in data_batch_1.bin is out of range 0..9"),
        (lambda files: files.update({first: files[first][:-1]}), "not a multiple"),
        (lambda files: files.update({first: b""}), "not a multiple"),
        (lambda files: files.pop(first), "data_batch_1.bin"),
        (lambda files: files.update({names: b"one\ntwo\n"}), "names 2 classes"),
    ):
        directory, _ = cifar_archive("cifar10", change)
        _expect_error(words, path=str(directory))


def test_members_do_not_escape(cifar_archive, tmp_path: Path, monkeypatch) -> None:
    """Hostile names and links are not followed; nothing is unpacked at all."""
    outside = tmp_path / "outside"
    directory, _ = cifar_archive(
        "cifar10", lambda files: files.update({"../outside": b"x", "/outside": b"x"})
    )
    load_dataset("cifar10", path=str(directory))
    assert not outside.exists()

    outside.write_bytes(b"\0" * 3073)
    monkeypatch.setattr(download, "_verify", lambda path, archive: None)
    (path,) = directory.iterdir()
    with tarfile.open(path, "w:gz") as tar:
        link = tarfile.TarInfo(PREFIX["cifar10"] + "data_batch_1.bin")
        link.type, link.linkname = tarfile.SYMTYPE, str(outside)
        tar.addfile(link)
    options = {"path": str(directory), "data_dir": str(tmp_path / "fresh")}
    _expect_error("not a regular file", **options)
