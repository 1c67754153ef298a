"""Augmentation on the device: pure functions of (key, images), to be jitted by the caller.

Image i of a batch sees only `fold_in(key, i)`: the result does not depend on the batch size
or on how a batch is spread over devices. uint8 `[B, H, W, C]` in, float32 normalised out.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp

from darts_jax.data.resized_crop import color_jitter, random_resized_crop
from darts_jax.errors import UserError


def normalise(
    images: jax.Array, *, mean: Sequence[float], std: Sequence[float]
) -> jax.Array:
    """Returns (images / 255 - mean) / std a channel, float32; images uint8 or 0..255."""
    # One multiplication and one addition; the constants are folded in double precision.
    scale = jnp.array([1 / (255 * s) for s in std], jnp.float32)
    shift = jnp.array([-m / s for m, s in zip(mean, std, strict=True)], jnp.float32)
    return images.astype(jnp.float32) * scale + shift


def image_keys(key: jax.Array, num_images: int) -> jax.Array:
    """Returns one key an image, `[B]`: `fold_in(key, i)`."""
    return jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(num_images))


def random_crop(key: jax.Array, images: jax.Array, padding: int) -> jax.Array:
    """Shifts every image by up to `padding` pixels each way, zeros move in.

    torchvision's RandomCrop(size, padding): zeros are black pixels, not zeros of the
    normalised image. Keeps shape and type.
    """
    if padding == 0:
        return images
    batch, height, width, channels = images.shape
    offsets = jax.vmap(lambda k: jax.random.randint(k, (2,), 0, 2 * padding + 1))(
        image_keys(key, batch)
    )
    pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    padded = jnp.pad(images, pads)

    def crop(image: jax.Array, offset: jax.Array) -> jax.Array:
        size = (height, width, channels)
        return jax.lax.dynamic_slice(image, (offset[0], offset[1], 0), size)

    return jax.vmap(crop)(padded, offsets)


def random_flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Mirrors every image left to right with probability 1/2."""
    flips = jax.vmap(jax.random.bernoulli)(image_keys(key, len(images)))
    return jnp.where(flips[:, None, None, None], images[:, :, ::-1], images)


def random_cutout(key: jax.Array, images: jax.Array, side: int) -> jax.Array:
    """Sets a square of `side` pixels in every image to 0 (DeVries and Taylor 2017).

    As in the reference's utils.Cutout: the centre is any pixel, the square is clipped at the
    borders and reaches from centre - side // 2 up to, not including, centre + side // 2.
    Applied to normalised images, where 0 is the mean colour. Raises `UserError` for a square
    larger than the image.
    """
    if side == 0:
        return images
    batch, height, width, _ = images.shape
    if not 0 <= side <= max(height, width):
        raise UserError(
            f"augmentation.cutout={side} must be >= 0 and no larger than the image of "
            f"{height}x{width}"
        )
    limits = jnp.array([height, width])
    centres = jax.vmap(lambda k: jax.random.randint(k, (2,), 0, limits))(
        image_keys(key, batch)
    )

    def inside(size: int, centre: jax.Array) -> jax.Array:
        pixel = jnp.arange(size)
        low, high = centre[:, None] - side // 2, centre[:, None] + side // 2
        return (pixel >= low) & (pixel < high)

    rows, columns = inside(height, centres[:, 0]), inside(width, centres[:, 1])
    mask = rows[:, :, None, None] & columns[:, None, :, None]
    return jnp.where(mask, 0, images)


def augment(
    key: jax.Array,
    images: jax.Array,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    crop_padding: int = 4,
    flip: bool = True,
    cutout: int = 0,
) -> jax.Array:
    """CIFAR's augmentation: random crop, flip, normalise, cutout (0: none).

    Order and meaning as in quark0/darts, cnn/utils.py. uint8 `[B, H, W, C]` in, float32 out.
    Raises `UserError` when the padding is not smaller than the image, or as `random_cutout`.
    """
    if not 0 <= crop_padding < min(images.shape[1:3]):
        raise UserError(
            f"augmentation.crop_padding={crop_padding} must be >= 0 and smaller than the "
            f"image of {images.shape[1]}x{images.shape[2]}"
        )
    crop_key, flip_key, cutout_key = jax.random.split(key, 3)
    images = random_crop(crop_key, images, crop_padding)
    if flip:
        images = random_flip(flip_key, images)
    return random_cutout(cutout_key, normalise(images, mean=mean, std=std), cutout)


def augment_resized(
    key: jax.Array,
    images: jax.Array,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    crop_padding: int = 0,
    flip: bool = True,
    cutout: int = 0,
    cropped: bool = False,
) -> jax.Array:
    """ImageNet's augmentation: random resized crop, flip, colour jitter, normalise, cutout.

    As in quark0/darts, cnn/train_imagenet.py (which has no cutout); colours are jittered in
    RGB images only. cropped: the images come cropped, as streamed ones do, whose crops are
    cut from the files' own sizes. `crop_padding` has no meaning here. Raises `UserError` as
    `random_cutout`.
    """
    del crop_padding
    crop_key, flip_key, color_key, cutout_key = jax.random.split(key, 4)
    # Keys of a split are folds too: a key of its own, or the order would be image 1's draws.
    order_key, color_key = jax.random.split(color_key)
    images = images.astype(jnp.float32)
    if not cropped:
        images = random_resized_crop(image_keys(crop_key, len(images)), images)
    if flip:
        images = random_flip(flip_key, images)
    if images.shape[-1] == 3:
        keys = image_keys(color_key, len(images))
        images = color_jitter(order_key, keys, images)
    return random_cutout(cutout_key, normalise(images, mean=mean, std=std), cutout)


def no_augmentation(
    key: jax.Array,
    images: jax.Array,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    crop_padding: int = 0,
    flip: bool = False,
    cutout: int = 0,
) -> jax.Array:
    """Normalises only; the other arguments have no meaning here."""
    del key, crop_padding, flip, cutout
    return normalise(images, mean=mean, std=std)


AUGMENTATIONS: dict[str, Callable[..., jax.Array]] = {
    "crop_flip": augment,
    "resized_crop": augment_resized,
    "none": no_augmentation,
}
