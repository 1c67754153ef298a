"""What both orders of images share: banded matrices, and what they read of an image.

Which tap stands where in them is a table of 0 and 1, computed from the taps' places where it
is needed: a compiler finds that the source states of one shape share it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


class Taps(NamedTuple):
    """Depthwise kernels of m chains on each of n edges.

    places: of each of all T taps of an edge its chain, and how many rows and columns it
    stands from an output's own pixel.
    """

    values: jax.Array  # [C, n, T]
    places: np.ndarray  # [T, 3]

    @property
    def offsets(self) -> tuple[int, ...]:
        """Those along one axis, in order."""
        return tuple(sorted({int(offset) for offset in self.places[:, 1]}))

    @property
    def chains(self) -> int:
        """How many chains an edge has."""
        return 1 + int(self.places[:, 0].max())


def reads(
    offsets: tuple[int, ...], stride: int, outputs: int, size: int
) -> tuple[int, ...]:
    """Returns which pixels of an axis `outputs` neighbouring outputs read.

    They are relative to the first output's own. Of an axis of `size` pixels that is read by
    one such group, only those that it has.
    """
    found = sorted({stride * r + offset for r in range(outputs) for offset in offsets})
    if outputs * stride >= size:
        found = [pixel for pixel in found if 0 <= pixel < size]
    return tuple(found)


def grouped(
    offsets: tuple[int, ...],
    stride: int,
    size: int,
    numbers: Callable[[int, int], int],
) -> tuple[int, tuple[int, ...]]:
    """Returns how many neighbouring outputs across a matrix makes, and what they read.

    Args:
        offsets: of the taps, along the axis across.
        stride: of the axis.
        size: its pixels.
        numbers: of so many outputs that read so many pixels, what is to be the fewest.
    """
    outputs = -(-size // stride)
    divisors = [count for count in range(1, outputs + 1) if outputs % count == 0]
    choices = [(count, reads(offsets, stride, count, size)) for count in divisors]
    return min(choices, key=lambda choice: numbers(choice[0], len(choice[1])))


def views(
    x: jax.Array, read: tuple[int, ...], step: int, count: int
) -> list[jax.Array]:
    """Returns, along axis 2, for each of `read` that and every `step`-th behind it, `count`.

    Beyond the image is 0.
    """
    before, last = max(0, -read[0]), read[-1] + step * (count - 1)
    pads = (before, max(0, last + 1 - x.shape[2]))
    padded = jnp.pad(x, ((0, 0), (0, 0), pads, (0, 0)))
    span = (count - 1) * step + 1
    return [
        lax.slice_in_dim(padded, before + r, before + r + span, step, axis=2)
        for r in read
    ]


def matrices(
    taps: Taps,
    stride: int,
    along: tuple[int, int],
    across: tuple[int, tuple[int, ...]],
    *,
    rows_across: bool,
) -> jax.Array:
    """Returns the matrix of every channel and kernel, `[C, n, m, V, R, S, L]`.

    Output (v, r), pixel v along an axis of the image and r across it, reads (s, l). Which tap
    stands where is a table of 0 and 1: one product for all matrices, in place of a dozen small
    ones with what lies between. The table is compared where it is needed; the compiler finds
    that source states of one shape share it.

    Args:
        taps: the kernels.
        stride: of both axes.
        along: V outputs, and all L pixels of the axis.
        across: R outputs, and S pixels that they read.
        rows_across: whether an image's rows are what is across.
    """

    def axis(values: Any, place: int) -> jax.Array:
        """Returns the values on an axis of `[T, m, V, R, S, L]`."""
        return jnp.expand_dims(values, [i for i in range(6) if i != place])

    chain, here, there = (axis(each, 0) for each in taps.places.T)
    if rows_across:
        here, there = there, here
    table = chain == axis(np.arange(taps.chains), 1)
    table &= stride * axis(np.arange(along[0]), 2) + here == axis(
        np.arange(along[1]), 5
    )
    table &= stride * axis(np.arange(across[0]), 3) + there == axis(
        np.array(across[1]), 4
    )
    channels, edges, count = taps.values.shape
    basis = table.reshape(count, -1).astype(taps.values.dtype)
    matrix = taps.values.reshape(-1, count) @ basis
    return matrix.reshape(channels, edges, *table.shape[1:])
