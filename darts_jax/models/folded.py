"""The mixed operations of a source state as dense convolutions, for machines of matrix units.

A depthwise kernel and the pointwise one behind it are folded into one dense kernel:

    dense[i, j, c, d] = taps[i, j, c] * mix[c, d]

That is K * K * C' / (K * K + C') times the products, on units that have them to spare, and a
fraction of the memory traffic: what lies between the two is never there, all edges that leave
the state are one convolution, and no normalised copy is weighted, since the edge weights go
into the factors of the last batch norms:

    mixed[e] = sum over p of w[e, p] * factor[p, e] * z[p, e] + w[e, p] * shift[p, e]

Inside, activations are `[B, H, W, n * C]`, the order of those units, so nothing is transposed
between two convolutions. Plain operations of JAX throughout: derivatives of every order are
JAX's own.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from darts_jax.kernels.mixed import Branches, Operands, Stage, StageKernels
from darts_jax.models.layers import avg_pool, max_pool
from darts_jax.models.normalise import EPSILON, exact


class Normed(NamedTuple):
    """A batch norm's input `[B, H, W, C]` and what normalises it: `factor * z + shift`."""

    z: jax.Array
    factor: jax.Array  # [C], as shift
    shift: jax.Array
    moments: tuple[jax.Array, jax.Array]  # mean and unbiased variance, [C]


def folded_mixed_branches(
    operands: Operands, branches: Branches
) -> tuple[jax.Array, Any]:
    """Returns the weighted sum of all branches of the n edges that leave one source state.

    Returns:
        `[n, C', B, H', W']`, and of every branch the moments (mean, unbiased variance) of its
        batch norms, `[n, C']` each, through which no gradient flows.
    """
    edges = len(operands.weights)
    weights = iter(operands.weights.T)
    rectified = nn.relu(_channels_last(operands.x))
    total: Any = 0.0
    offset: Any = 0.0
    moments: list[Any] = []
    for kernels, stages in zip(operands.kernels, branches.chains, strict=True):
        normed = _chain(rectified, kernels, stages)
        last = normed[-1]
        weight = jnp.repeat(next(weights), len(last.factor) // edges)
        total += weight * last.factor * last.z
        offset += weight * last.shift
        moments.append(
            tuple(tuple(m.reshape(edges, -1) for m in each.moments) for each in normed)
        )
    for kind, normalised in branches.shared:
        value = operands.x
        if kind != "identity":
            pool = max_pool if kind == "max_pool" else avg_pool
            value = pool(value, stride=branches.stride)
        weight, found = next(weights)[:, None], []
        z = _channels_last(value)
        if normalised:
            norm = _normed(z)
            found = [tuple(jnp.broadcast_to(m, (edges, len(m))) for m in norm.moments)]
            offset += (weight * norm.shift).ravel()
            weight = weight * norm.factor
        factor = jnp.broadcast_to(weight, (edges, len(value))).ravel()
        total += factor * jnp.tile(z, edges)
        moments.append(tuple(found))
    mixed = (total + offset).astype(operands.x.dtype)
    mixed = mixed.reshape(*mixed.shape[:3], edges, -1).transpose(3, 4, 0, 1, 2)
    return mixed, lax.stop_gradient(tuple(moments))


def _chain(
    x: jax.Array, kernels: Sequence[StageKernels], stages: Sequence[Stage]
) -> list[Normed]:
    """Returns the stages of a chain on a rectified source state `[B, H, W, C]`."""
    normed = [_normed(_convolved(x, kernels[0], stages[0], groups=1), kernels[0])]
    for kernel, stage in zip(kernels[1:], stages[1:], strict=True):
        z, factor, shift, _ = normed[-1]
        x = nn.relu(factor * z + shift).astype(z.dtype)
        z = _convolved(x, kernel, stage, groups=len(kernel.taps))
        normed.append(_normed(z, kernel))
    return normed


def _channels_last(x: jax.Array) -> jax.Array:
    return x.transpose(1, 2, 3, 0)


def _convolved(
    x: jax.Array, kernels: StageKernels, stage: Stage, groups: int
) -> jax.Array:
    """Returns a stage's convolutions `[B, H', W', n * C']`.

    Args:
        x: `[B, H, W, groups * C]`, rectified.
        kernels: of n edges.
        stage: its stride and dilation.
        groups: 1 where the edges share x, n where each has its own.
    """
    dense = kernels.taps
    if kernels.mix is not None:
        dense = dense[..., None] * kernels.mix[:, None, None]
    edges, size, _, channels, out_channels = dense.shape
    merged = dense.transpose(1, 2, 3, 0, 4).astype(x.dtype)
    pad = stage.dilation * (size // 2)
    return lax.conv_general_dilated(
        x,
        merged.reshape(size, size, channels, edges * out_channels),
        window_strides=(stage.stride, stage.stride),
        padding=[(pad, pad)] * 2,
        rhs_dilation=(stage.dilation, stage.dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _normed(z: jax.Array, kernels: StageKernels | None = None) -> Normed:
    """Returns the batch norm of z `[B, H, W, C]`, with scale and shift of `kernels`, if any.

    Both sums are one pass around the first pixel's value, which may be any number near the
    mean: a difference of large squares would lose the variance.
    """
    values = z.astype(exact(z.dtype))
    pivot = lax.stop_gradient(values[:1, :1, :1])
    mean = jnp.mean(values - pivot, (0, 1, 2))
    variance = jnp.mean(jnp.square(values - pivot), (0, 1, 2)) - jnp.square(mean)
    variance = jnp.maximum(variance, 0)
    mean += pivot[0, 0, 0]
    factor = lax.rsqrt(variance + EPSILON)
    if kernels is not None and kernels.scale is not None:
        factor *= kernels.scale.ravel()
    shift = -mean * factor
    if kernels is not None and kernels.shift is not None:
        shift += kernels.shift.ravel()
    count = z[..., 0].size
    return Normed(z, factor, shift, (mean, variance * (count / max(count - 1, 1))))
