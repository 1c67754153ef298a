"""Augmentations against their definitions, written out in numpy, and Pillow."""

import colorsys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from darts_jax.data import AUGMENTATIONS, augment, augmentation, normalise
from darts_jax.data import resized_crop as rc
from darts_jax.data.augmentation import (
    augment_resized,
    random_crop,
    random_cutout,
    random_flip,
)
from darts_jax.errors import UserError

KEY = jax.random.key(0)
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def images(count: int, height=8, width=8, channels=3) -> np.ndarray:
    generator = np.random.default_rng(count)
    return generator.integers(0, 256, (count, height, width, channels), np.uint8)


def test_normalise() -> None:
    x = images(4)
    expected = (x / 255 - np.array(MEAN)) / np.array(STD)
    found = normalise(x, mean=MEAN, std=STD)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_crop_is_one_of_the_windows_and_all_occur() -> None:
    x = np.repeat(images(1, 6, 7), 2000, axis=0) // 2 + 1  # no zeros inside
    padded = np.pad(x[0], ((1, 1), (1, 1), (0, 0)))
    windows = {
        padded[i : i + 6, j : j + 7].tobytes(): (i, j)
        for i in range(3)
        for j in range(3)
    }
    found = [windows[c.tobytes()] for c in np.asarray(random_crop(KEY, x, 1))]
    counts = np.bincount([3 * i + j for i, j in found], minlength=9)
    assert np.all(np.abs(counts - 2000 / 9) < 75)  # five standard deviations


def test_padding_is_black_before_normalising() -> None:
    """As torchvision: the border is (0 - mean) / std, not 0."""
    x = np.full((200, 8, 8, 3), 255, np.uint8)
    out = np.asarray(augment(KEY, x, mean=MEAN, std=STD, crop_padding=4, flip=False))
    black = -np.array(MEAN) / np.array(STD)
    white = (1 - np.array(MEAN)) / np.array(STD)
    is_black = np.isclose(out, black, atol=1e-5).all(-1)
    is_white = np.isclose(out, white, atol=1e-5).all(-1)
    assert np.all(is_black ^ is_white) and 0.2 < is_black.mean() < 0.7


def test_flip_is_a_mirror_half_of_the_time() -> None:
    x = np.repeat(images(1), 2000, axis=0)
    out = np.asarray(random_flip(KEY, x))
    flipped = (out == x[:, :, ::-1]).all((1, 2, 3))
    kept = (out == x).all((1, 2, 3))
    assert np.all(flipped ^ kept) and 0.44 < flipped.mean() < 0.56


def test_cutout_is_a_clipped_square() -> None:
    x = np.ones((1000, 10, 12, 2), np.float32)
    out = np.asarray(random_cutout(KEY, x, 4))
    assert np.all(out[..., 0] == out[..., 1])
    heights, widths = [], []
    for hole in out[..., 0] == 0:
        rows, columns = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
        # A full rectangle without gaps.
        assert hole.sum() == len(rows) * len(columns)
        assert np.ptp(rows) == len(rows) - 1 and np.ptp(columns) == len(columns) - 1
        heights.append(len(rows))
        widths.append(len(columns))
        # Only at a border is it smaller than 4.
        assert len(rows) == 4 or rows[0] == 0 or rows[-1] == 9
        assert len(columns) == 4 or columns[0] == 0 or columns[-1] == 11
    # Centres 0 .. 9, rows centre - 2 .. centre + 1: heights 2, 3, 4 x 7, 3 of 10.
    assert abs(np.mean(heights) - 3.6) < 0.1 and abs(np.mean(widths) - 44 / 12) < 0.1
    assert set(heights) == {2, 3, 4}


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_contract(name: str, channels: int) -> None:
    """Shape, type, determinism, jit, and image i depending on (key, i) alone."""
    x = images(6, channels=channels)
    plain = partial(
        AUGMENTATIONS[name],
        mean=MEAN[:channels],
        std=STD[:channels],
        crop_padding=2,
        flip=True,
        cutout=3,
    )
    change = jax.jit(plain)
    out = np.asarray(change(KEY, x))
    assert out.shape == x.shape and out.dtype == np.float32
    np.testing.assert_array_equal(out, change(KEY, x))
    if channels == 3:  # slow: every operation is compiled by itself
        np.testing.assert_allclose(out, plain(KEY, x), atol=1e-4)
    np.testing.assert_allclose(out[:4], change(KEY, x[:4]), atol=1e-5)
    other = np.array(x)
    other[0] = 0
    np.testing.assert_allclose(out[1:], np.asarray(change(KEY, other))[1:], atol=1e-5)
    if name == "none":
        expected = normalise(x, mean=MEAN[:channels], std=STD[:channels])
        np.testing.assert_allclose(out, expected, atol=1e-5)
    else:
        assert not np.array_equal(out, change(jax.random.key(1), x))


def test_images_of_a_batch_differ() -> None:
    x = np.repeat(images(1), 16, axis=0)
    for name in ("crop_flip", "resized_crop"):
        change = jax.jit(partial(AUGMENTATIONS[name], mean=MEAN, std=STD))
        out = np.asarray(change(KEY, x))
        assert len({image.tobytes() for image in out}) > 10


def test_off_means_off() -> None:
    x = images(5)
    out = augment(KEY, x, mean=MEAN, std=STD, crop_padding=0, flip=False, cutout=0)
    np.testing.assert_array_equal(out, normalise(x, mean=MEAN, std=STD))


def test_impossible_settings() -> None:
    for options, words in (
        ({"crop_padding": 8}, "crop_padding=8"),
        ({"crop_padding": -1}, "crop_padding=-1"),
        ({"cutout": -2}, "cutout"),
    ):
        with pytest.raises(UserError, match=words):
            augment(KEY, images(2), mean=MEAN, std=STD, **options)
    with pytest.raises(UserError, match="cutout=9 .* larger than the image of 8x8"):
        augment_resized(KEY, images(2), mean=MEAN, std=STD, cutout=9)


@pytest.mark.parametrize("box", [(0, 0, 20, 24), (3, 5, 9, 7), (1, 2, 1, 1)])
def test_resizing_agrees_with_pillow(box) -> None:
    top, left, rows, columns = box
    image = images(1, 20, 24)[0]
    weights = jax.jit(rc._resize_weights, static_argnums=2)
    vertical, horizontal = weights(top, rows, 20), weights(left, columns, 24)
    found = jnp.einsum("ph,hwc,qw->pqc", vertical, image.astype(np.float32), horizontal)
    cut = image[top : top + rows, left : left + columns]
    expected = Image.fromarray(cut).resize((24, 20), Image.Resampling.BILINEAR)
    assert np.abs(np.asarray(found) - np.asarray(expected)).max() < 1.5  # rounding


def test_boxes_keep_to_scale_and_ratio() -> None:
    keys = jax.random.split(KEY, 2000)
    draw = partial(
        rc._box, height=100, width=120, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)
    )
    top, left, rows, columns = map(np.asarray, jax.jit(jax.vmap(draw))(keys))
    assert np.all((top >= 0) & (left >= 0))
    assert np.all((top + rows <= 100) & (left + columns <= 120))
    area = rows * columns / (100 * 120)
    assert 0.075 < area.min() < 0.12 and area.max() > 0.9
    ratio = columns / rows
    assert 0.73 < ratio.min() < 0.8 and 1.25 < ratio.max() < 1.36
    assert abs(np.log(ratio).mean()) < 0.05


def test_colours_agree_with_their_definitions() -> None:
    x = images(3).astype(np.float32)
    factor = np.array([0.7, 1.0, 1.3], np.float32)[:, None, None, None]
    grey = (x * [0.2989, 0.587, 0.114]).sum(-1, keepdims=True)
    mean = grey.mean((1, 2, 3), keepdims=True)
    for change, other in (
        (rc._brightness, 0),
        (rc._contrast, mean),
        (rc._saturation, grey),
    ):
        expected = np.clip(factor * x + (1 - factor) * other, 0, 255)
        np.testing.assert_allclose(jax.jit(change)(x, factor), expected, atol=1e-3)
    turn = np.array([-0.2, 0.0, 0.13], np.float32)[:, None, None, None]
    found = np.asarray(jax.jit(rc._hue)(x, turn))
    for i, row, column in np.ndindex(3, 8, 8):
        hue, saturation, value = colorsys.rgb_to_hsv(*(x[i, row, column] / 255))
        hue = (hue + turn[i, 0, 0, 0]) % 1
        expected = np.array(colorsys.hsv_to_rgb(hue, saturation, value)) * 255
        np.testing.assert_allclose(found[i, row, column], expected, atol=0.05)


def test_order_of_the_jitter_does_not_follow_from_an_images_draws(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both come from one key: 4 draws of image 1 sorted were the order of its batch."""
    same = np.zeros(4)
    keys: list[tuple[jax.Array, jax.Array]] = []

    def spy(key: jax.Array, each: jax.Array, x: jax.Array) -> jax.Array:
        keys.append((key, each))
        return x

    monkeypatch.setattr(augmentation, "color_jitter", spy)
    for seed in range(60):
        key, x = jax.random.key(seed), images(4)
        augmentation.augment_resized(key, x, mean=(0.5,) * 3, std=(1.0,) * 3)
        order = np.asarray(jax.random.permutation(keys[-1][0], 4))
        draws = jax.vmap(lambda k: jax.random.uniform(k, (4,)))(keys[-1][1])
        same += (np.argsort(np.asarray(draws), axis=1) == order).all(axis=1)
    assert (same < 12).all()  # by chance one of 24, 2.5 of 60


def test_jitter_of_nothing_changes_nothing() -> None:
    x = images(4).astype(np.float32)
    keys = jax.random.split(KEY, 4)
    off = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    still = jax.jit(partial(rc.color_jitter, **off))(KEY, keys, x)
    np.testing.assert_allclose(still, x, atol=1e-2)
    assert np.abs(np.asarray(jax.jit(rc.color_jitter)(KEY, keys, x)) - x).mean() > 5
