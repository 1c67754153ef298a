"""A data set in memory, its reduction for quick runs, and the two halves of a search."""

import math
from typing import NamedTuple

import numpy as np

from darts_jax.data.arrays import Arrays
from darts_jax.errors import UserError


class Dataset(NamedTuple):
    """Images and labels of both splits in canonical order, undecorated.

    Very large images are mapped from disk (`np.memmap`) instead of held in memory.
    """

    name: str
    train_images: np.ndarray  # uint8 [N, H, W, C]
    train_labels: np.ndarray  # int32 [N]
    test_images: np.ndarray
    test_labels: np.ndarray
    num_classes: int
    class_names: tuple[str, ...]
    mean: tuple[float, ...]  # a channel, of images / 255 over the whole train split
    std: tuple[float, ...]


class Split(NamedTuple):
    """A part of the training split: images uint8 `[N, H, W, C]`, labels int32 `[N]`."""

    images: np.ndarray
    labels: np.ndarray


def from_arrays(name: str, arrays: Arrays, limit: int, test_limit: int) -> Dataset:
    """Returns the data set with at most `limit` training and `test_limit` test images.

    0 keeps all. What is kept is balanced over the classes; mean and std stay those of the
    whole training split, so that a limited run sees the same inputs.
    """
    train = _balanced(arrays.train_labels, limit)
    test = _balanced(arrays.test_labels, test_limit)
    return Dataset(
        name=name,
        train_images=arrays.train_images[train],
        train_labels=arrays.train_labels[train],
        test_images=arrays.test_images[test],
        test_labels=arrays.test_labels[test],
        num_classes=len(arrays.class_names),
        class_names=arrays.class_names,
        mean=arrays.mean,
        std=arrays.std,
    )


def _balanced(labels: np.ndarray, limit: int) -> np.ndarray | slice:
    """Returns the indices, ascending, of the first `limit` images taken class by class.

    First the first image of every class, then the second of every class, and so on: the
    classes differ by one image at most, unless one runs out.
    """
    if limit == 0 or limit >= len(labels):
        return slice(None)
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], labels)
    rank = np.empty(len(labels), np.int64)  # how many of its class come before it
    rank[order] = np.arange(len(labels))
    rank -= starts
    return np.sort(np.argsort(rank, kind="stable")[:limit])


def split(dataset: Dataset, train_fraction: float) -> tuple[Split, Split]:
    """Splits the training images into (lower-level data, upper-level data).

    The rule of the reference (quark0/darts, cnn/train_search.py): the first
    floor(train_fraction * N) images in canonical order train the weights, the rest the
    alphas; nothing is shuffled before. The test split is not touched. Raises `UserError`
    when a side would be empty.
    """
    num = len(dataset.train_labels)
    if not 0 < train_fraction < 1:
        raise UserError(
            f"dataset.train_fraction must lie between 0 and 1, got {train_fraction}"
        )
    border = math.floor(train_fraction * num)
    if border == 0 or border == num:
        raise UserError(
            f"dataset.train_fraction={train_fraction} leaves 0 of {num} training images "
            f"for {'the weights' if border == 0 else 'the alphas'}"
        )
    images, labels = dataset.train_images, dataset.train_labels
    return (
        Split(images[:border], labels[:border]),
        Split(images[border:], labels[border:]),
    )
