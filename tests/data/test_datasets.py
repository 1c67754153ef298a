"""Every registered data set, the limit, the split, and what no argument may do."""

import subprocess
import sys

import numpy as np
import pytest

from darts_jax.data import DATASETS, load_dataset, split
from darts_jax.data.arrays import measure
from darts_jax.errors import UserError


@pytest.fixture
def options(image_folder, cifar_archive):
    """The arguments that load a small edition of any data set of the registry."""

    def small(name: str) -> dict:
        if name.startswith("cifar"):
            return {"path": str(cifar_archive(name)[0])}
        if name == "folder":
            return {"path": str(image_folder({"a": 9, "b": 12, "c": 10}))}
        return {"num_examples": 40} if name == "synthetic" else {}

    return small


@pytest.mark.parametrize("name", DATASETS)
def test_contract(name: str, options) -> None:
    arguments = options(name)
    dataset = load_dataset(name, **arguments)
    assert dataset.name == name
    assert len(dataset.class_names) == dataset.num_classes
    for images, labels in (
        (dataset.train_images, dataset.train_labels),
        (dataset.test_images, dataset.test_labels),
    ):
        assert images.dtype == np.uint8 and images.ndim == 4
        assert labels.dtype == np.int32 and labels.shape == images.shape[:1]
        assert labels.min() >= 0 and labels.max() < dataset.num_classes
    channels = dataset.train_images.shape[-1]
    assert len(dataset.mean) == len(dataset.std) == channels
    assert all(0 < m < 1 for m in dataset.mean) and all(s > 0 for s in dataset.std)
    again = load_dataset(name, **arguments)
    for first, second in zip(dataset[1:5], again[1:5], strict=True):
        np.testing.assert_array_equal(first, second)
    assert again[5:] == dataset[5:]


def test_digits_are_scaled_and_stratified() -> None:
    from sklearn.datasets import load_digits

    digits = load_dataset("digits")
    assert digits.train_images.shape == (1347, 8, 8, 1)
    assert digits.test_images.shape == (450, 8, 8, 1)
    assert digits.train_images.min() == 0 and digits.train_images.max() == 255
    counts = np.bincount(digits.test_labels, minlength=10)
    whole = np.bincount(load_digits().target, minlength=10)
    assert np.all(np.abs(counts - whole / 4) <= 1)
    # Every image is there once, with its label, in the order of the file in either split.
    original = np.floor(load_digits().images * 255 / 16 + 0.5).astype(np.uint8)
    place = {image.tobytes(): i for i, image in enumerate(original)}
    assert len(place) == 1797
    seen = []
    for images, labels in (
        (digits.train_images, digits.train_labels),
        (digits.test_images, digits.test_labels),
    ):
        where = [place[image.tobytes()] for image in images]
        assert where == sorted(where)
        np.testing.assert_array_equal(load_digits().target[where], labels)
        seen += where
    assert sorted(seen) == list(range(1797))


def test_synthetic_is_learnable_and_depends_on_the_seed() -> None:
    first = load_dataset("synthetic", num_examples=200)
    other = load_dataset("synthetic", num_examples=200, seed=1)
    assert not np.array_equal(first.train_images, other.train_images)
    # The nearest class mean is right far more often than one in ten.
    means = np.stack(
        [first.train_images[first.train_labels == c].mean(0) for c in range(10)]
    )
    distances = ((first.test_images[:, None] - means) ** 2).sum((2, 3, 4))
    assert (distances.argmin(1) == first.test_labels).mean() > 0.9
    small = load_dataset("synthetic", image_size=8, num_classes=3, num_examples=30)
    assert small.train_images.shape == (30, 8, 8, 3) and small.num_classes == 3


def test_limit_is_balanced_and_keeps_the_statistics() -> None:
    whole = load_dataset("digits")
    some = load_dataset("digits", limit=64, test_limit=25)
    assert len(some.train_images) == 64 and len(some.test_images) == 25
    counts = np.bincount(some.train_labels, minlength=10)
    assert counts.min() == 6 and counts.max() == 7
    assert np.bincount(some.test_labels, minlength=10).max() == 3
    assert some.mean == whole.mean and some.std == whole.std
    # The first of each class, in canonical order.
    for c in range(10):
        expected = whole.train_images[whole.train_labels == c][: counts[c]]
        np.testing.assert_array_equal(
            some.train_images[some.train_labels == c], expected
        )
    assert len(load_dataset("digits", limit=10**6).train_images) == 1347


def test_split_is_the_references_rule() -> None:
    digits = load_dataset("digits", limit=101)
    train, valid = split(digits, 0.5)
    assert len(train.labels) == 50 and len(valid.labels) == 51
    np.testing.assert_array_equal(
        np.concatenate([train.images, valid.images]), digits.train_images
    )
    np.testing.assert_array_equal(train.labels, digits.train_labels[:50])


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5, 0.001, float("nan")])
def test_split_refuses_an_empty_side(fraction: float) -> None:
    digits = load_dataset("digits", limit=20)
    with pytest.raises(UserError, match="train_fraction"):
        split(digits, fraction)


def test_measure_agrees_with_numpy() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5000, 3, 2, 3), np.uint8)
    images[..., 2] = 7
    mean, std = measure(images)
    scaled = images / 255
    np.testing.assert_allclose(mean, scaled.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std[:2], scaled.std((0, 1, 2))[:2], rtol=1e-12)
    assert std[2] == 1 / 255  # constant: no division by zero later


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("cifar1O", {}, "did you mean 'cifar10'"),
        ("digits", {"path": "x"}, "takes no path"),
        ("digits", {"image_size": 32}, "takes no image_size"),
        ("cifar10", {"num_classes": 5}, "takes no num_classes"),
        ("folder", {"seed": 1, "path": "x"}, "takes no seed"),
        ("folder", {}, "--config.dataset.path=DIR"),
        ("digits", {"limit": -1}, "limit must be >= 0"),
        ("synthetic", {"num_classes": 1}, "num_classes"),
        ("synthetic", {"image_size": 2}, "image_size"),
        ("synthetic", {"num_examples": 5}, "num_examples"),
    ],
)
def test_mistakes_are_one_line(name: str, options: dict, words: str) -> None:
    with pytest.raises(UserError) as caught:
        load_dataset(name, **options)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_no_tensorflow_and_no_noise(tmp_path) -> None:
    """A fresh process prepares and loads, says nothing, and never imports TensorFlow."""
    program = (
        "import sys; from darts_jax.data import load_dataset, progress\n"
        "progress.QUIET_SECONDS = 60  # a slow machine may speak sooner\n"
        f"for _ in range(2): load_dataset('synthetic', data_dir={str(tmp_path)!r})\n"
        "assert 'tensorflow_datasets' in sys.modules\n"
        "assert not {'tensorflow', 'torch'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "" and done.stderr == ""


def test_prepared_data_needs_no_tfds(tmp_path) -> None:
    """The second start of a run is quick: no tensorflow_datasets, no scikit-learn."""
    load_dataset("digits", data_dir=str(tmp_path))
    program = (
        "import sys; from darts_jax.data import load_dataset\n"
        f"load_dataset('digits', data_dir={str(tmp_path)!r})\n"
        "assert not {'tensorflow_datasets', 'sklearn'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
