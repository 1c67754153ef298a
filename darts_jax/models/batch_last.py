"""Merged separable convolutions, images in the order `[H, W, B]`: on one GPU.

As in `batch_first.py`, with the image's columns stacked and the matrices on the other side of
the product. Channels and norms then stand before all numbers of an image in what every product
takes and gives, so none of it is ever rearranged for the next one (XLA chooses the order of
axes in memory there, and chooses this one for the rest of the network too); and what is stacked
or shifted moves whole batches.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from darts_jax.models.banded import Taps, grouped, matrices, views

# Numbers of a channel that a pointwise product takes at once: the gradient of its kernel is
# then a short product a part, in place of a single long one that keeps few processors busy.
PART = 8192


def in_parts(x: jax.Array) -> tuple[jax.Array, tuple[int, ...]]:
    """Returns images `[N, C, B, H, W]` as `[N, G, C, P]`, G parts of the rows, and how."""
    count, channels, batch, height, width = x.shape
    images = (height, 1, width, batch)
    x = jnp.moveaxis(x, 2, -1).reshape(count, channels, _parts(images), -1)
    return x.swapaxes(1, 2), images


def of_images(z: jax.Array, images: tuple[int, ...]) -> jax.Array:
    """Returns `[N, G, C, P]` as `[N, C, B, H, W]`.

    Args:
        images: `[H, R, W / R, B]`; a column is R times its place on the third axis and its
            place on the second.
    """
    height, _, _, batch = images
    x = z.swapaxes(1, 2).reshape(z.shape[0], z.shape[2], *images)
    x = x.transpose(0, 1, 5, 2, 4, 3)
    return x.reshape(*x.shape[:2], batch, height, -1)


def in_order(
    z: jax.Array, images: tuple[int, ...]
) -> tuple[jax.Array, tuple[int, ...]]:
    """Returns what `separable` does in the order of `in_parts`."""
    height, columns, blocks, batch = images
    count, parts, channels, _ = z.shape
    x = z.reshape(count, parts, channels, -1, columns, blocks, batch).swapaxes(4, 5)
    return x.reshape(z.shape), (height, 1, columns * blocks, batch)


def separable(
    x: jax.Array, taps: Taps, mix: jax.Array, stride: int
) -> tuple[jax.Array, tuple[int, ...]]:
    """Returns what `batch_first.separable` does, `[H', R, W' / R, B]` as of `of_images`."""
    states, channels, batch, height, width = x.shape
    out_height, out_width = -(-height // stride), -(-width // stride)
    count = len(mix) // states

    def stacked(columns: int, read: int) -> int:
        outputs = count * columns * out_height
        # A matrix is made of a table about as large.
        return read * height * (batch * out_width // columns + 3 * outputs)

    columns, read = grouped(taps.offsets, stride, width, stacked)
    blocks = out_width // columns
    along, across = (out_height, height), (columns, read)
    # [C, n, m, H', R, S, H]
    matrix = matrices(taps, stride, along, across, rows_across=False)
    matrix = matrix.reshape(channels * states, -1, len(read) * height)
    # Channels first, so that the pointwise products find the norms side by side.
    x = x.transpose(1, 0, 3, 4, 2).reshape(-1, height, width, batch)
    stack = jnp.stack(views(x, read, stride * columns, blocks), 1)
    y = matrix @ stack.reshape(len(x), -1, blocks * batch)
    images = (out_height, columns, blocks, batch)
    y = y.reshape(channels, len(mix), _parts(images), -1)
    mixes = jnp.broadcast_to(mix[:, None], (len(mix), y.shape[2], *mix.shape[1:]))
    return lax.dot_general(mixes, y, (((2,), (0,)), ((0, 1), (1, 2)))), images


def _parts(images: tuple[int, ...]) -> int:
    """Returns in how many parts to take images: rows are divided."""
    return math.gcd(images[0], max(1, math.prod(images) // PART))
