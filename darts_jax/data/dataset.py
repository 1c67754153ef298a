"""A data set in memory, its reduction for quick runs, and the two halves of a search."""

import math
from typing import NamedTuple

import numpy as np

from darts_jax.data.arrays import Arrays
from darts_jax.data.streaming import StreamedImages
from darts_jax.errors import UserError


class Dataset(NamedTuple):
    """Images and labels of both splits in canonical order, undecorated.

    Very large images are mapped from disk (`np.memmap`) instead of held in memory, streamed
    ones stay on disk.
    """

    name: str
    train_images: np.ndarray | StreamedImages  # uint8 [N, H, W, C]
    train_labels: np.ndarray  # int32 [N]
    test_images: np.ndarray | StreamedImages
    test_labels: np.ndarray
    num_classes: int
    class_names: tuple[str, ...]
    mean: tuple[
        float, ...
    ]  # a channel, of images / 255 (streamed: of some; on_disk.py)
    std: tuple[float, ...]

    @property
    def streamed(self) -> bool:
        """Whether the images stay on disk."""
        return isinstance(self.train_images, StreamedImages)


class Split(NamedTuple):
    """A part of the training split: images uint8 `[N, H, W, C]`, labels int32 `[N]`."""

    images: np.ndarray | StreamedImages
    labels: np.ndarray


def from_arrays(
    name: str,
    arrays: Arrays,
    limit: int,
    test_limit: int,
    *,
    fraction: float = 1.0,
    subset_seed: int = 0,
) -> Dataset:
    """Returns the data set with at most `limit` training and `test_limit` test images.

    0 keeps all. What is kept is balanced over the classes; mean and std stay those of the
    whole training split, so that a limited run sees the same inputs. fraction, subset_seed:
    of the training images, before the limit, as `class_share` draws them.
    """
    share = class_share(arrays.train_labels, fraction, subset_seed)
    train = _balanced(arrays.train_labels[share], limit)
    if not isinstance(share, slice):
        train = share[train]
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


def class_share(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray | slice:
    """Returns the rows of a random `fraction` of every class, interleaved.

    Of a class of n images floor(fraction * n) are kept, one at least: a function of (labels,
    fraction, seed). In the order returned the r-th of the k of a class stands at
    (r + 1/2) / k, so that every prefix holds each class in proportion; so do both halves of
    a search, which `split` cuts from it. PC-DARTS (Xu et al. 2020, section 4.3) samples 10 %
    and 2.5 % of ImageNet's training images for weights and alphas in this way.
    """
    if fraction == 1:
        return slice(None)
    order = np.argsort(labels, kind="stable")
    classes, starts = np.unique(labels[order], return_index=True)
    kept, places = [], []
    for label, members in zip(classes, np.split(order, starts[1:]), strict=True):
        number = max(1, math.floor(fraction * len(members)))
        rng = np.random.default_rng((seed, int(label)))
        kept.append(rng.permutation(members)[:number])
        places.append((np.arange(number) + 0.5) / number)
    by_place = np.argsort(np.concatenate(places), kind="stable")
    return np.concatenate(kept)[by_place]


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
