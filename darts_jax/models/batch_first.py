"""Merged separable convolutions, images in the order `[B, H, W]`: CPUs and several devices.

A depthwise convolution is a product batched over channels of rows of the image, stacked, and
banded matrices; a matrix may make several rows of outputs at once, which stacks fewer copies
of the image.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from darts_jax.models.banded import Taps, grouped, matrices, views

# Parts that pointwise products take one by one: in one piece a step takes a third longer.
PARTS = 8


def in_parts(x: jax.Array) -> tuple[jax.Array, tuple[int, ...]]:
    """Returns images `[N, C, B, H, W]` as `[N, G, C, P]`, G parts of the batch, and how."""
    count, channels, *images = x.shape
    x = x.reshape(count, channels, math.gcd(images[0], PARTS), -1).swapaxes(1, 2)
    return x, tuple(images)


def of_images(z: jax.Array, images: tuple[int, ...]) -> jax.Array:
    """Returns `[N, G, C, P]` as `[N, C, B, H, W]`."""
    return z.swapaxes(1, 2).reshape(z.shape[0], z.shape[2], *images)


def in_order(
    z: jax.Array, images: tuple[int, ...]
) -> tuple[jax.Array, tuple[int, ...]]:
    """Returns what it is given: `separable` has the order of `in_parts`."""
    return z, images


def separable(
    x: jax.Array, taps: Taps, mix: jax.Array, stride: int
) -> tuple[jax.Array, tuple[int, ...]]:
    """Returns N = n * m depthwise convolutions and the pointwise ones behind them.

    Args:
        x: `[1, C, B, H, W]`, for all of them, or `[N, C, B, H, W]`.
        taps: of n edges and m chains.
        mix: `[N, C, C']`.
        stride: of both image axes.

    Returns:
        `[N, G, C', P]` as of `in_parts`, and how.
    """
    states, channels, batch, height, width = x.shape
    out_height, out_width = -(-height // stride), -(-width // stride)
    count = len(mix) // states

    def stacked(rows: int, read: int) -> int:
        outputs = count * rows * out_width
        return read * width * (batch * out_height // rows + outputs)

    rows, read = grouped(taps.offsets, stride, height, stacked)
    blocks = out_height // rows
    along, across = (out_width, width), (rows, read)
    # [C, n, m, W', R, S, W]
    matrix = matrices(taps, stride, along, across, rows_across=True)
    matrix = matrix.reshape(channels * states, count, out_width, rows, -1)
    matrix = matrix.transpose(0, 4, 1, 3, 2).reshape(
        len(matrix), -1, count * rows * out_width
    )
    x = x.swapaxes(0, 1).reshape(-1, batch, height, width)
    stack = jnp.stack(views(x, read, stride * rows, blocks), 3)
    y = stack.reshape(len(x), batch * blocks, -1) @ matrix
    parts = math.gcd(batch, PARTS)
    y = y.reshape(channels, states, parts, -1, blocks, count, rows, out_width)
    y = y.transpose(1, 5, 2, 0, 3, 4, 6, 7).reshape(len(mix), parts, channels, -1)
    mixes = jnp.broadcast_to(mix[:, None], (len(mix), parts, *mix.shape[1:]))
    z = lax.dot_general(mixes, y, (((2,), (2,)), ((0, 1), (0, 1))))
    return z, (batch, out_height, out_width)
