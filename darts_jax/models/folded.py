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

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from darts_jax.kernels.mixed import Branches, Operands, Stage, StageKernels
from darts_jax.models.layers import avg_pool, max_pool
from darts_jax.models.normalise import EPSILON, exact

Moments = tuple[jax.Array, jax.Array]


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
    images = _channels_last(operands.x)
    rectified = nn.relu(images)
    total: Any = 0.0
    offset: Any = 0.0
    moments: list[Any] = []
    for kernels, stages in zip(operands.kernels, branches.chains, strict=True):
        value, found = rectified, []
        for number, (kernel, stage) in enumerate(zip(kernels, stages, strict=True)):
            if number:
                value = nn.relu(factor * z + shift).astype(z.dtype)
            z = _convolved(value, kernel, stage, groups=edges if number else 1)
            factor, shift, moment = _normalising(z, kernel)
            found.append(tuple(m.reshape(edges, -1) for m in moment))
        weight = jnp.repeat(next(weights), z.shape[-1] // edges)
        total += weight * factor * z
        offset += weight * shift
        moments.append(tuple(found))
    for kind, normalised in branches.shared:
        z, found = images, []
        if kind != "identity":
            pool = max_pool if kind == "max_pool" else avg_pool
            z = _channels_last(pool(operands.x, stride=branches.stride))
        weight = next(weights)[:, None]
        if normalised:
            factor, shift, moment = _normalising(z)
            found = [tuple(jnp.broadcast_to(m, (edges, len(m))) for m in moment)]
            offset += (weight * shift).ravel()
            weight = weight * factor
        total += jnp.repeat(weight, z.shape[-1] // weight.shape[1], 1).ravel() * (
            jnp.tile(z, edges)
        )
        moments.append(tuple(found))
    mixed = (total + offset).astype(operands.x.dtype)
    mixed = mixed.reshape(*mixed.shape[:3], edges, -1).transpose(3, 4, 0, 1, 2)
    return mixed, lax.stop_gradient(tuple(moments))


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


def _normalising(
    z: jax.Array, kernels: StageKernels | None = None
) -> tuple[jax.Array, jax.Array, Moments]:
    """Returns the batch norm of z `[B, H, W, C]` as factor and shift `[C]`, and its moments.

    The normalised value is `factor * z + shift`; mean and unbiased variance are `[C]`. Both
    sums are one pass around the first pixel's value, which may be any number near the mean:
    a difference of large squares would lose the variance.
    """
    values = z.astype(exact(z.dtype))
    pivot = lax.stop_gradient(values[:1, :1, :1])
    count = z[..., 0].size
    mean = jnp.mean(values - pivot, (0, 1, 2))
    variance = jnp.mean(jnp.square(values - pivot), (0, 1, 2)) - jnp.square(mean)
    variance = jnp.maximum(variance, 0)
    mean += pivot[0, 0, 0]
    factor, shift = lax.rsqrt(variance + EPSILON), 0.0
    if kernels is not None and kernels.scale is not None:
        factor *= kernels.scale.ravel()
    if kernels is not None and kernels.shift is not None:
        shift = kernels.shift.ravel()
    unbiased = variance * (count / max(count - 1, 1))
    return factor, shift - mean * factor, (mean, unbiased)
