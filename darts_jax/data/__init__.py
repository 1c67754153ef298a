"""Data sets, batches and augmentation.

A new data set is one file with a function `Request -> Source` and one line in DATASETS.
"""

import os
from collections.abc import Callable
from pathlib import Path

from darts_jax.data import cifar, digits, folder, on_disk, prepared, synthetic
from darts_jax.data.augmentation import AUGMENTATIONS, augment, normalise
from darts_jax.data.batches import epoch_batches, epoch_order, iid_batches
from darts_jax.data.dataset import Dataset, Split, from_arrays, split
from darts_jax.data.source import Request, Source
from darts_jax.data.streaming import (
    StreamedImages,
    Streaming,
    crop_key,
    stream_batches,
)
from darts_jax.errors import UserError, unknown

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "Dataset",
    "Split",
    "StreamedImages",
    "Streaming",
    "augment",
    "crop_key",
    "default_data_dir",
    "epoch_batches",
    "epoch_order",
    "iid_batches",
    "load_dataset",
    "normalise",
    "split",
    "stream_batches",
]

DATASETS: dict[str, Callable[[Request], Source]] = {
    "cifar10": cifar.cifar10,
    "cifar100": cifar.cifar100,
    "digits": digits.digits,
    "folder": folder.folder,
    "synthetic": synthetic.synthetic,
}


def default_data_dir() -> Path:
    """Returns where prepared sets are kept: $DARTS_JAX_DATA, else the user's cache."""
    chosen = os.environ.get("DARTS_JAX_DATA")
    if chosen:
        return Path(chosen).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "darts_jax" / "data"


def load_dataset(
    name: str,
    *,
    path: str = "",
    data_dir: str = "",
    limit: int = 0,
    test_limit: int = 0,
    image_size: int = 0,
    seed: int = 0,
    num_classes: int = 0,
    num_examples: int = 0,
    fraction: float = 1.0,
    subset_seed: int = 0,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    streaming: Streaming = Streaming(),  # noqa: B008 (a NamedTuple)
) -> Dataset:
    """Loads a data set, preparing (and downloading) it first if need be.

    name: in DATASETS. path: the root of 'folder', or the directory that holds the archive of
    'cifar10' or 'cifar100'. data_dir: where prepared sets are kept (`default_data_dir`).
    limit, test_limit: keep so many images, balanced over the classes; 0: all. image_size: of
    'folder' and 'synthetic', pixels a side; 0: as stored. seed, num_classes, num_examples: of
    'synthetic'. fraction, subset_seed: the share of every class's training images that is
    used, and which. mean, std: a channel, in place of the measured ones; empty: measured.
    streaming: whether the images stay on disk (`StreamedImages`). Raises `UserError` on
    anything wrong with the arguments, the files, the network or the disk.
    """
    if name not in DATASETS:
        raise unknown("data set", name, DATASETS)
    numbers = {
        "limit": limit,
        "test_limit": test_limit,
        "image_size": image_size,
        "num_classes": num_classes,
        "num_examples": num_examples,
    }
    for option, value in numbers.items():
        if value < 0:
            raise UserError(f"dataset.{option} must be >= 0 (0: default), got {value}")
    root = Path(data_dir).expanduser().absolute() if data_dir else default_data_dir()
    request = Request(name, root, path, image_size, seed, num_classes, num_examples)
    source = DATASETS[name](request)
    mean_std = (tuple(mean), tuple(std)) if mean or std else None
    if on_disk.is_streamed(source, request, streaming):
        arrays = on_disk.open_streamed(source, request, streaming, mean_std)
    else:
        arrays = prepared.get(source, root)
    if mean_std is not None:
        channels = arrays.train_images.shape[-1]
        if not len(mean) == len(std) == channels:
            raise UserError(
                f"dataset.mean={tuple(mean)} and dataset.std={tuple(std)} must both have "
                f"{channels} numbers, one a channel"
            )
        arrays = arrays._replace(mean=mean_std[0], std=mean_std[1])
    return from_arrays(
        name, arrays, limit, test_limit, fraction=fraction, subset_seed=subset_seed
    )
