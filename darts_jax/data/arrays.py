"""Decoded images as .npy files beside the prepared set, so that loading takes a second.

    <version>/arrays-<key>/{train,test}_{images,labels}.npy  arrays.json

The key is a digest of the prepared set's files, so arrays never outlive what they were made
from. The folder is written under another name and renamed when complete. arrays.json holds
the SHA-256 of every file: what does not match is made again, never half-read.
"""

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from darts_jax.data.streaming import StreamedImages

FORMAT = 1
FILES = ("train_images", "train_labels", "test_images", "test_labels")
# Images beyond this stay on disk and are mapped (and then not checked at every start).
MAP_BYTES = 4 << 30


class Arrays(NamedTuple):
    """A loaded data set without its name."""

    train_images: np.ndarray | StreamedImages  # uint8 [N, H, W, C]
    train_labels: np.ndarray  # int32 [N]
    test_images: np.ndarray | StreamedImages
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    mean: tuple[float, ...]  # of images / 255 over the whole training split, a channel
    std: tuple[float, ...]


def key(directory: Path) -> str:
    """Returns a digest of the prepared set: its description, and its files' names and sizes."""
    digest = hashlib.sha256((directory / "dataset_info.json").read_bytes())
    for path in sorted(directory.glob("*.array_record*")):
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
    return digest.hexdigest()[:16]


def load(directory: Path) -> Arrays | None:
    """Returns the arrays of the prepared set in `directory`; None when missing or damaged."""
    try:
        place = directory / f"arrays-{key(directory)}"
        about = json.loads((place / "arrays.json").read_text())
        if about["format"] != FORMAT:
            return None
        loaded = [_load(place / f"{name}.npy", about["sha256"][name]) for name in FILES]
        return Arrays(
            loaded[0],
            loaded[1],
            loaded[2],
            loaded[3],
            tuple(about["class_names"]),
            tuple(about["mean"]),
            tuple(about["std"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _load(path: Path, sha256: str) -> np.ndarray:
    if path.stat().st_size > MAP_BYTES:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    if _sha256(path) != sha256:
        raise ValueError(f"{path} is damaged")
    return np.load(path, allow_pickle=False)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make(
    directory: Path, mean_std: tuple[tuple[float, ...], tuple[float, ...]] | None
) -> Arrays:
    """Decodes the prepared set in `directory` and keeps the arrays beside it.

    In a directory that cannot be written to they are only returned.
    """
    temporary = directory / f".arrays.{os.getpid()}"
    place = directory / f"arrays-{key(directory)}"
    try:
        temporary.mkdir()
    except OSError:
        return _decode(directory, None, mean_std)
    try:
        arrays = _decode(directory, temporary, mean_std)
        np.save(temporary / "train_labels.npy", arrays.train_labels)
        np.save(temporary / "test_labels.npy", arrays.test_labels)
        about: dict[str, Any] = {
            "format": FORMAT,
            "class_names": arrays.class_names,
            "mean": arrays.mean,
            "std": arrays.std,
            "sha256": {name: _sha256(temporary / f"{name}.npy") for name in FILES},
        }
        (temporary / "arrays.json").write_text(json.dumps(about, indent=1))
        shutil.rmtree(place, ignore_errors=True)  # damaged, or load() had taken it
        temporary.rename(place)
        return load(directory) or arrays
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _decode(
    directory: Path,
    target: Path | None,
    mean_std: tuple[tuple[float, ...], tuple[float, ...]] | None,
) -> Arrays:
    """Reads both splits; images are written to `target` as they come, if there is one."""
    from darts_jax.data import builder  # imports tensorflow_datasets

    names = builder.class_names(directory)
    splits = []
    for split in ("train", "test"):

        def allocate(shape: tuple[int, ...], split: str = split) -> np.ndarray:
            if target is None:
                return np.empty(shape, np.uint8)
            path = target / f"{split}_images.npy"
            return np.lib.format.open_memmap(path, "w+", np.uint8, shape)

        images, labels = builder.read_split(directory, split, allocate)
        if isinstance(images, np.memmap):
            images.flush()
        if labels.min() < 0 or labels.max() >= len(names):
            raise ValueError(f"{split} labels reach outside 0..{len(names) - 1}")
        splits += [images, labels]
    mean, std = mean_std or measure(splits[0])
    return Arrays(splits[0], splits[1], splits[2], splits[3], names, mean, std)


def measure(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and standard deviation a channel of uint8 `[N, H, W, C]` / 255.

    Exact: from counts of the 256 values. A constant channel gets the deviation 1 / 255, so
    that normalising never divides by zero.
    """
    channels = images.shape[-1]
    counts = np.zeros((channels, 256), np.int64)
    for start in range(0, len(images), 4096):
        chunk = images[start : start + 4096]
        for channel in range(channels):
            values = chunk[..., channel].ravel()
            counts[channel] += np.bincount(values, minlength=256)
    values = np.arange(256) / 255
    weights = counts / counts.sum(axis=1, keepdims=True)
    mean = weights @ values
    variance = (weights * (values - mean[:, None]) ** 2).sum(axis=1)
    std = np.maximum(np.sqrt(variance), 1 / 255)
    return tuple(map(float, mean)), tuple(map(float, std))


def sweep(directory: Path) -> None:
    """Removes what interrupted preparations left for `directory`; call it under the lock."""
    leftovers = [
        *directory.parent.glob(f"incomplete.*_{directory.name}"),
        *directory.glob(".arrays.*"),
    ]
    for leftover in leftovers:
        with contextlib.suppress(OSError):
            shutil.rmtree(leftover)
