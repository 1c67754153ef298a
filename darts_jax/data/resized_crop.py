"""Random resized crop and colour jitter for ImageNet-style training, on the device.

Both follow torchvision's transforms; images are float32 `[B, H, W, C]` in 0..255.
"""

import math

import jax
import jax.numpy as jnp

SCALE = (0.08, 1.0)  # torchvision's range of a box's share of the area
RATIO = (3 / 4, 4 / 3)  # and of its width : height
ATTEMPTS = 10  # torchvision's number of tries before it falls back to a central crop
GREY = (0.2989, 0.587, 0.114)  # luminance of R, G, B, as torchvision rounds it


def random_resized_crop(
    keys: jax.Array,
    images: jax.Array,
    *,
    scale: tuple[float, float] = SCALE,
    ratio: tuple[float, float] = RATIO,
) -> jax.Array:
    """Cuts a random box out of every image and resizes it to the image's own size.

    `keys` `[B]`. The box has a share of the area in `scale` and a width : height in `ratio`
    (uniform in the logarithm); bilinear with antialiasing, pixels outside the box are not
    seen.
    """
    height, width = images.shape[1:3]

    def crop(key: jax.Array, image: jax.Array) -> jax.Array:
        top, left, rows, columns = _box(key, height, width, scale, ratio)
        vertical = _resize_weights(top, rows, height)
        horizontal = _resize_weights(left, columns, width)
        return jnp.einsum("ph,hwc,qw->pqc", vertical, image, horizontal)

    return jax.vmap(crop)(keys, images)


def _box(
    key: jax.Array,
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Returns (top, left, rows, columns), int32: the first of ATTEMPTS boxes that fits."""
    area_key, ratio_key, place_key = jax.random.split(key, 3)
    low, high = scale
    area = (
        height
        * width
        * jax.random.uniform(area_key, (ATTEMPTS,), minval=low, maxval=high)
    )
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = jnp.exp(
        jax.random.uniform(ratio_key, (ATTEMPTS,), minval=low, maxval=high)
    )
    columns = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
    rows = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)
    fits = (columns >= 1) & (columns <= width) & (rows >= 1) & (rows <= height)
    first = jnp.argmax(fits)
    # The fall-back: the largest central box with a ratio in the range.
    all_columns = min(width, round(height * ratio[1]))
    all_rows = min(height, round(width / ratio[0]))
    found = fits[first]
    rows = jnp.where(found, rows[first], all_rows)
    columns = jnp.where(found, columns[first], all_columns)
    room = jnp.stack([height - rows, width - columns])
    place = jax.random.randint(place_key, (2,), 0, room + 1)
    place = jnp.where(found, place, room // 2)
    return place[0], place[1], rows, columns


def _resize_weights(start: jax.Array, length: jax.Array, size: int) -> jax.Array:
    """Returns `[size, size]`: row p holds the weights of the source pixels of output p.

    The source is start .. start + length - 1, the kernel a triangle that widens when the
    box shrinks (as Pillow's bilinear does).
    """
    factor = length / size
    centre = start + (jnp.arange(size) + 0.5) * factor
    pixel = jnp.arange(size)
    distance = jnp.abs(pixel + 0.5 - centre[:, None]) / jnp.maximum(factor, 1.0)
    inside = (pixel >= start) & (pixel < start + length)
    weights = jnp.where(inside, jnp.maximum(1.0 - distance, 0.0), 0.0)
    return weights / weights.sum(axis=1, keepdims=True)


def color_jitter(
    key: jax.Array,
    keys: jax.Array,
    images: jax.Array,
    *,
    brightness: float = 0.4,
    contrast: float = 0.4,
    saturation: float = 0.4,
    hue: float = 0.2,
) -> jax.Array:
    """Changes brightness, contrast, saturation and hue of RGB images at random.

    Factors are uniform in 1 - x .. 1 + x (hue: a turn of -x .. x of the circle) and drawn
    for each image from `keys` `[B]`. The order of the four is random too, but drawn from
    `key` once a batch: a separate order an image would cost all four at every place.
    """
    spread = jnp.array([brightness, contrast, saturation, hue])
    draws = jax.vmap(lambda k: jax.random.uniform(k, (4,), minval=-1.0))(keys) * spread
    factors = draws + jnp.array([1.0, 1.0, 1.0, 0.0])
    changes = (_brightness, _contrast, _saturation, _hue)
    order = jax.random.permutation(key, 4)
    for place in range(4):
        index = order[place]
        factor = factors[:, index][:, None, None, None]
        images = jax.lax.switch(index, changes, images, factor)
    return images


def _blend(images: jax.Array, other: jax.Array, factor: jax.Array) -> jax.Array:
    return jnp.clip(factor * images + (1 - factor) * other, 0, 255)


def _brightness(images: jax.Array, factor: jax.Array) -> jax.Array:
    return _blend(images, jnp.zeros_like(images), factor)


def _grey(images: jax.Array) -> jax.Array:
    weights = jnp.array(GREY, images.dtype)
    return (images * weights).sum(axis=-1, keepdims=True)


def _contrast(images: jax.Array, factor: jax.Array) -> jax.Array:
    mean = _grey(images).mean(axis=(1, 2, 3), keepdims=True)
    return _blend(images, mean, factor)


def _saturation(images: jax.Array, factor: jax.Array) -> jax.Array:
    return _blend(images, _grey(images), factor)


def _hue(images: jax.Array, turn: jax.Array) -> jax.Array:
    """Adds `turn` to the hue in HSV space, branch-free both ways."""
    value = images.max(axis=-1)
    spread = value - images.min(axis=-1)
    safe = jnp.where(spread > 0, spread, 1)
    red, green, blue = images[..., 0], images[..., 1], images[..., 2]
    hue = jnp.where(
        value == red,
        (green - blue) / safe,
        jnp.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    hue = hue + 6 * turn[..., 0]
    # Channel = value - spread * clip(min(k, 4 - k), 0, 1) with k = (offset + hue) mod 6.
    offsets = jnp.array([5.0, 3.0, 1.0])
    k = jnp.mod(offsets + hue[..., None], 6)
    dip = jnp.clip(jnp.minimum(k, 4 - k), 0, 1)
    return value[..., None] - spread[..., None] * dip
