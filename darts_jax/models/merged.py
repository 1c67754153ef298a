"""The mixed operations of a source state by few, large matrix products: where no kernels are.

A supernet's step on a GPU is thousands of kernels of a few microseconds each. So what leaves a
state is computed together, whatever its primitive: the first depthwise convolutions of all
chains on all edges are one product, their pointwise ones another, their batch norms one pass,
then the same for the second stages. No normalised copy is weighted, since the edge weights go
into the factors of the last batch norms:

    mixed[e] = sum over p of w[e, p] * factor[p, e] * z[p, e] + w[e, p] * shift[p, e]

A depthwise convolution is a product with banded matrices, as in `depthwise.py`. The kernels of
all chains share the rows of the image that any of them reads, and a matrix may make several
rows of outputs at once, which stacks fewer copies of the image.

Plain operations of JAX throughout: derivatives of every order are JAX's own.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from darts_jax.kernels.mixed import Branches, Operands, Stage, StageKernels
from darts_jax.models.depthwise import band, reach
from darts_jax.models.layers import avg_pool, max_pool, stacked_conv
from darts_jax.models.normalise import EPSILON, exact

# Parts of a batch that pointwise products take one by one: the gradient of a pointwise kernel
# is then a short product a part, in place of a single long one that keeps few processors busy.
PARTS = 8


class Normed(NamedTuple):
    """Inputs `[G, N, C, P]` of N batch norms, and what normalises them: `factor * z + shift`.

    G parts of the batch, P numbers a part.
    """

    z: jax.Array
    factor: jax.Array  # [N, C], as shift
    shift: jax.Array
    moments: tuple[jax.Array, jax.Array]  # mean and unbiased variance, [N, C]

    def part(self, first: int, count: int) -> "Normed":
        """Returns `count` of the norms."""
        where = slice(first, first + count)
        rows = [value[where] for value in (self.factor, self.shift, *self.moments)]
        return Normed(self.z[:, where], rows[0], rows[1], (rows[2], rows[3]))


def merged_mixed_branches(
    operands: Operands, branches: Branches
) -> tuple[jax.Array, Any]:
    """Returns the weighted sum of all branches of the n edges that leave one source state.

    Returns:
        `[n, C', B, H', W']`, and of every branch the moments (mean, unbiased variance) of its
        batch norms, `[n, C']` each, through which no gradient flows.
    """
    chains, image = _chains(operands, branches)
    weights = iter(operands.weights.T[..., None])
    edges, batch = len(operands.weights), operands.x.shape[1]
    total: Any = 0.0
    offset: Any = 0.0
    moments: list[Any] = []
    for normed in chains:
        weight, last = next(weights), normed[-1]
        total += (weight * last.factor)[..., None] * last.z
        offset += weight * last.shift
        moments.append(tuple(stage.moments for stage in normed))
    for kind, normalised in branches.shared:
        value = operands.x
        if kind != "identity":
            pool = max_pool if kind == "max_pool" else avg_pool
            value = pool(value, stride=branches.stride)
        image = value.shape[2:]
        weight, found = next(weights), []
        z = _in_parts(value[None])
        if normalised:
            norm = _normed(z)
            found = [tuple(jnp.repeat(m, edges, 0) for m in norm.moments)]
            offset += weight * norm.shift
            weight = weight * norm.factor
        total += weight[..., None] * z
        moments.append(tuple(found))
    mixed = (total + jnp.asarray(offset)[..., None]).astype(operands.x.dtype)
    mixed = mixed.reshape(*mixed.shape[:3], -1, *image).transpose(1, 2, 0, 3, 4, 5)
    mixed = mixed.reshape(edges, -1, batch, *image)
    return mixed, lax.stop_gradient(tuple(moments))


def _chains(
    operands: Operands, branches: Branches
) -> tuple[list[list[Normed]], Sequence[int]]:
    """Returns the stages of every chain, and the size of the image behind them."""
    edges, rectified = len(operands.weights), nn.relu(operands.x)
    found: list[list[Normed]] = [[] for _ in branches.chains]
    image: Sequence[int] = operands.x.shape[2:]
    separable = []
    for i, chain in enumerate(operands.kernels):
        if chain[0].mix is not None:
            separable.append(i)
            continue
        taps, pad = chain[0].taps.astype(rectified.dtype), chain[0].taps.shape[1] // 2
        z = stacked_conv(rectified, taps, (1, 1), (pad, pad))
        found[i].append(_normed(_in_parts(z), chain))
        image = z.shape[3:]
    # The longest first: a stage is then of the first chains.
    separable.sort(key=lambda i: -len(branches.chains[i]))
    x, normed = rectified[None], None
    for depth in range(2):
        members = [i for i in separable if len(branches.chains[i]) > depth]
        if not members:
            break
        kernels = [operands.kernels[i][depth] for i in members]
        stages = [branches.chains[i][depth] for i in members]
        if normed is not None:
            x = _of_images(_rectified(normed.part(0, len(members) * edges)), image)
        z, image = _convolved(x, kernels, stages)
        normed = _normed(z, kernels)
        for place, i in enumerate(members):
            found[i].append(normed.part(place * edges, edges))
    return found, image


def _in_parts(x: jax.Array) -> jax.Array:
    """Returns `[N, C, B, H, W]` as `[G, N, C, P]`."""
    count, channels, batch = x.shape[:3]
    parts = math.gcd(batch, PARTS)
    return x.reshape(count, channels, parts, -1).transpose(2, 0, 1, 3)


def _of_images(x: jax.Array, image: Sequence[int]) -> jax.Array:
    """Returns `[G, N, C, P]` as `[N, C, B, H, W]`."""
    parts, count, channels, _ = x.shape
    x = x.reshape(parts, count, channels, -1, *image).transpose(1, 2, 0, 3, 4, 5)
    return x.reshape(count, channels, -1, *image)


def _rectified(normed: Normed) -> jax.Array:
    z, factor, shift = normed.z, normed.factor, normed.shift
    # In z's dtype before the rectifier: so is the gradient then that passes it and is stored.
    return nn.relu((factor[..., None] * z + shift[..., None]).astype(z.dtype))


def _convolved(
    x: jax.Array, kernels: Sequence[StageKernels], stages: Sequence[Stage]
) -> tuple[jax.Array, tuple[int, int]]:
    """Returns separable convolutions of m chains of n edges, `[G, m * n, C', P]`, and H', W'.

    Args:
        x: `[1, C, B, H, W]`, rectified, for all of them, or `[m * n, C, B, H, W]`.
        kernels: of every chain, as its stage; all of one stride.
    """
    edges = len(kernels[0].taps)
    sizes = [kernel.taps.shape[1] for kernel in kernels]
    shapes = tuple((k, stage.dilation) for k, stage in zip(sizes, stages, strict=True))
    offsets, places = _places(shapes)
    flat = [k.taps.reshape(edges, -1, k.taps.shape[3]) for k in kernels]
    taps = jnp.einsum(
        "ntc,tmoq->mncoq",
        jnp.concatenate(flat, 1).astype(x.dtype),
        jnp.asarray(places, x.dtype),
    )
    taps = taps.reshape(-1, *taps.shape[2:])  # [m * n, C, O, O]
    mix = jnp.concatenate([k.mix for k in kernels if k.mix is not None])
    mix = mix.swapaxes(1, 2).astype(x.dtype)
    states, channels, batch, *_ = x.shape
    shared = states == 1  # the other axis of these two is 1
    taps = taps.swapaxes(0, 1) if shared else taps.reshape(-1, 1, *taps.shape[2:])
    y = _depthwise(x.reshape(-1, *x.shape[2:]), taps, offsets, stages[0].stride)
    _, _, blocks, count, rows, width = y.shape
    parts = math.gcd(batch, PARTS)
    y = y.reshape(states, channels, parts, -1, blocks, count, rows, width)
    y = y.transpose(2, 0, 5, 1, 3, 4, 6, 7).reshape(parts, len(mix), channels, -1)
    return jnp.broadcast_to(mix, (parts, *mix.shape)) @ y, (blocks * rows, width)


def _depthwise(
    x: jax.Array, taps: jax.Array, offsets: tuple[int, ...], stride: int
) -> jax.Array:
    """Returns N depthwise convolutions of every channel, `[A, B, H' / R, N, R, W']`.

    One product of a channel makes R rows of the outputs; R is chosen so that the fewest
    numbers are stacked.

    Args:
        x: `[A, B, H, W]`.
        taps: `[A, N, O, O]`.
        offsets: of the O taps from an output's own pixel, along both axes.
    """
    channels, batch, height, width = x.shape
    count = taps.shape[1]
    out_height, out_width = -(-height // stride), -(-width // stride)

    def stacked(rows: int) -> int:
        reads = len(_read(offsets, stride, rows, height))
        outputs = count * rows * out_width
        return reads * width * (batch * out_height // rows + outputs)

    divisors = [r for r in range(1, out_height + 1) if out_height % r == 0]
    rows = min(divisors, key=stacked)
    reads = _read(offsets, stride, rows, height)
    across = band(offsets, tuple(range(width)), stride, out_width)
    down = band(offsets, reads, stride, rows)
    matrix = taps[:, :, :, None]
    if rows > 1 or len(reads) < len(offsets):
        matrix = jnp.einsum("anoq,osr->ansrq", taps, jnp.asarray(down, x.dtype))
    matrix = jnp.einsum("ansrq,qwv->ansrwv", matrix, jnp.asarray(across, x.dtype))
    matrix = matrix.transpose(0, 2, 4, 1, 3, 5)
    matrix = matrix.reshape(channels, len(reads) * width, -1)
    above, below = max(0, -reads[0]), max(0, reads[-1] + stride * (out_height - rows))
    padded = jnp.pad(x, ((0, 0), (0, 0), (above, max(0, below - height + 1)), (0, 0)))
    blocks, step = out_height // rows, stride * rows
    views = [
        lax.slice_in_dim(
            padded, above + row, above + row + (blocks - 1) * step + 1, step, axis=2
        )
        for row in reads
    ]
    stack = jnp.stack(views, 3).reshape(channels, batch * blocks, -1)
    return (stack @ matrix).reshape(channels, batch, blocks, count, rows, out_width)


def _read(
    offsets: tuple[int, ...], stride: int, rows: int, height: int
) -> tuple[int, ...]:
    """Returns which rows of the image `rows` rows of an output read, relative to their first.

    Of an image that is one block, only rows that it has.
    """
    found = sorted({stride * row + offset for row in range(rows) for offset in offsets})
    if rows * stride >= height:
        found = [row for row in found if 0 <= row < height]
    return tuple(found)


@functools.cache
def _places(
    shapes: tuple[tuple[int, int], ...],
) -> tuple[tuple[int, ...], np.ndarray]:
    """Returns the offsets of the taps of m kernels from an output's pixel, and their places.

    Args:
        shapes: (K, dilation) of each.

    Returns:
        O offsets in order, along one axis, and 0/1 `[T, m, O, O]`, T taps in all: in which
        kernel and where each of them is.
    """
    reaches = [reach(size, dilation) for size, dilation in shapes]
    offsets = tuple(sorted({offset for each in reaches for offset in each}))
    taps = [(m, i, j) for m, each in enumerate(reaches) for i in each for j in each]
    count = len(offsets)
    places = np.zeros((len(taps), len(shapes), count, count), np.float32)
    for t, (m, i, j) in enumerate(taps):
        places[t, m, offsets.index(i), offsets.index(j)] = 1
    return offsets, places


def _normed(z: jax.Array, kernels: Sequence[StageKernels] = ()) -> Normed:
    """Returns the batch norms of z `[G, N, C, P]`, with scale and shift of `kernels`, if any.

    Both sums are one pass around the first pixel's value, which may be any number near the
    mean: a difference of large squares would lose the variance.
    """
    values = z.astype(exact(z.dtype))
    pivot = lax.stop_gradient(values[:1, :, :, :1])
    mean = jnp.mean(values - pivot, (0, 3))
    variance = jnp.mean(jnp.square(values - pivot), (0, 3)) - jnp.square(mean)
    variance = jnp.maximum(variance, 0)
    mean += pivot[0, :, :, 0]
    factor = lax.rsqrt(variance + EPSILON)
    scales = [kernel.scale for kernel in kernels if kernel.scale is not None]
    shifts = [kernel.shift for kernel in kernels if kernel.shift is not None]
    if scales:
        factor *= jnp.concatenate(scales)
    shift = -mean * factor
    if shifts:
        shift += jnp.concatenate(shifts)
    count = z[:, 0, 0].size
    return Normed(z, factor, shift, (mean, variance * (count / max(count - 1, 1))))
