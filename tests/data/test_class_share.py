"""Class-balanced subsets: as many of every class, and in both halves of a search."""

import numpy as np
import pytest

from darts_jax.data import Streaming, load_dataset, split
from darts_jax.data.dataset import class_share

COUNTS = (160, 80, 41)
LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], COUNTS))


def test_share_of_every_class() -> None:
    rows = class_share(LABELS, 0.125, 0)
    assert len(set(rows.tolist())) == len(rows)
    np.testing.assert_array_equal(np.bincount(LABELS[rows]), [20, 10, 5])
    np.testing.assert_array_equal(rows, class_share(LABELS, 0.125, 0))
    other = class_share(LABELS, 0.125, 1)
    assert len(set(rows.tolist()) & set(other.tolist())) < 15
    assert class_share(LABELS, 1.0, 0) == slice(None)


def test_few_images_of_a_class_leave_one() -> None:
    rows = class_share(LABELS, 0.001, 0)
    np.testing.assert_array_equal(np.bincount(LABELS[rows]), [1, 1, 1])


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_every_prefix_holds_each_class_in_proportion(share: float) -> None:
    rows = class_share(LABELS, 0.5, 3)
    counts = np.bincount(LABELS[rows])
    prefix = LABELS[rows[: int(share * len(rows))]]
    assert np.all(np.abs(np.bincount(prefix, minlength=3) - share * counts) <= 1)


@pytest.mark.parametrize("mode", ["always", "never"])
def test_data_of_a_search_as_in_pc_darts(mode: str) -> None:
    """Tenth and fortieth part of 400 images a class: 40 and 10 of each, disjoint."""
    options = {"num_examples": 1200, "num_classes": 3, "image_size": 4}
    chosen = {"fraction": 0.125, "mean": (0.5,) * 3, "std": (0.2,) * 3}
    dataset = load_dataset("synthetic", streaming=Streaming(mode), **options, **chosen)
    train, valid = split(dataset, 0.8)
    np.testing.assert_array_equal(np.bincount(train.labels), [40] * 3)
    np.testing.assert_array_equal(np.bincount(valid.labels), [10] * 3)
    rows = class_share(load_dataset("synthetic", **options).train_labels, 0.125, 0)
    assert len(set(rows.tolist())) == 150
    whole = load_dataset("synthetic", **options)
    read = valid.images.read if mode == "always" else valid.images.__getitem__
    np.testing.assert_array_equal(read(7), whole.train_images[rows[120 + 7]])
    limited = load_dataset("synthetic", **options, fraction=0.125, limit=31)
    np.testing.assert_array_equal(np.bincount(limited.train_labels), [11, 10, 10])
    another = load_dataset("synthetic", **options, fraction=0.125, subset_seed=1)
    assert not np.array_equal(another.train_images[:5], whole.train_images[rows[:5]])
