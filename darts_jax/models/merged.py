"""The mixed operations of a source state by few, large matrix products: where no kernels are.

A supernet's step on a GPU is thousands of kernels of a few microseconds each. So what leaves a
state is computed together, whatever its primitive: the first depthwise convolutions of all
chains on all edges are one product, their pointwise ones another, their batch norms one pass,
then the same for the second stages. No normalised copy is weighted, since the edge weights go
into the factors of the last batch norms:

    mixed[e] = sum over p of w[e, p] * factor[p, e] * z[p, e] + w[e, p] * shift[p, e]

Separable convolutions are products of their own (ORDERS); the kernels of all chains share what
any of them reads of an image.

Plain operations of JAX throughout: derivatives of every order are JAX's own.
"""

import functools
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from darts_jax.kernels.mixed import Branches, Operands, Stage, StageKernels
from darts_jax.models import batch_first, batch_last
from darts_jax.models.banded import Taps
from darts_jax.models.depthwise import reach
from darts_jax.models.layers import avg_pool, max_pool, stacked_conv
from darts_jax.models.normalise import EPSILON, exact

Images = tuple[int, ...]


# How images lie in memory, and separable convolutions of them; each module has
# in_parts: images `[N, C, B, H, W]` to `[N, G, C, P]`, G parts of P numbers, and what they are;
# of_images: back; separable: the convolutions; in_order: what it returns, as of `in_parts`.
ORDERS: dict[str, ModuleType] = {"batch_first": batch_first, "batch_last": batch_last}


class Normed(NamedTuple):
    """Inputs `[N, G, C, P]` of N batch norms, and what normalises them: `factor * z + shift`.

    G parts of P numbers, in all those of the images, as one of ORDERS has them.
    """

    z: jax.Array
    factor: jax.Array  # [N, C], as shift
    shift: jax.Array
    moments: tuple[jax.Array, jax.Array]  # mean and unbiased variance, [N, C]
    images: Images

    def of_chains(self, where: int | slice, chains: int) -> "Normed":
        """Returns the norms of some of m chains of an edge; n edges of m each are all N."""

        def chosen(value: jax.Array) -> jax.Array:
            each = value.reshape(-1, chains, *value.shape[1:])[:, where]
            return each.reshape(-1, *value.shape[1:])

        z, factor, shift, moments = jax.tree.map(chosen, self[:4])
        return Normed(z, factor, shift, moments, self.images)


# Source states of one shape are traced once: half of the time to trace a search step.
@functools.partial(jax.jit, static_argnames=("branches", "order"))
def merged_mixed_branches(
    operands: Operands, branches: Branches, order: str | None = None
) -> tuple[jax.Array, Any]:
    """Returns the weighted sum of all branches of the n edges that leave one source state.

    Args:
        operands: as for `fused.mixed_branches`.
        branches: likewise.
        order: in ORDERS; None for what is fastest on this backend.

    Returns:
        `[n, C', B, H', W']`, and of every branch the moments (mean, unbiased variance) of its
        batch norms, `[n, C']` each, through which no gradient flows.
    """
    layout = ORDERS[order or choice()]
    edges = len(operands.weights)
    inputs, factors, shifts, moments = [], [], [], []
    for normed in _chains(operands, branches, layout):
        last = normed[-1]
        inputs.append(layout.in_order(last.z, last.images))
        factors.append(last.factor)
        shifts.append(last.shift)
        moments.append(tuple(stage.moments for stage in normed))
    for kind, normalised in branches.shared:
        value = operands.x
        if kind != "identity":
            pool = max_pool if kind == "max_pool" else avg_pool
            value = pool(value, stride=branches.stride)
        inputs.append(layout.in_parts(value[None]))
        factor, shift = jnp.ones((1, len(value))), jnp.zeros((1, len(value)))
        found: tuple = ()
        if normalised:
            norm = _normed(*inputs[-1])
            factor, shift = norm.factor, norm.shift
            found = (tuple(jnp.repeat(m, edges, 0) for m in norm.moments),)
        factors.append(jnp.repeat(factor, edges, 0))
        shifts.append(jnp.repeat(shift, edges, 0))
        moments.append(found)
    # All branches' at once: each its own is a kernel for some dozen numbers.
    weights = operands.weights[..., None]  # [n, branches, 1]
    scaled = jnp.stack(factors, 1) * weights
    total = _by_channel(jnp.sum(jnp.stack(shifts, 1) * weights, 1))
    for branch, (z, _) in enumerate(inputs):
        total += _by_channel(scaled[:, branch]) * z
    mixed = layout.of_images(total.astype(operands.x.dtype), inputs[0][1])
    return mixed, lax.stop_gradient(tuple(moments))


def choice() -> str:
    """Returns the entry of ORDERS for the devices of this run.

    `batch_last` takes 1.4 times as long a step on CPUs and 0.7 times on a GPU, as measured on
    an H100 (benchmarks/NOTES.md). A batch that is split over devices cannot stay so in an axis
    behind the pixels that products merge it with.
    """
    if jax.default_backend() == "cpu" or jax.device_count() > 1:
        return "batch_first"
    return "batch_last"


def _chains(
    operands: Operands, branches: Branches, order: ModuleType
) -> list[list[Normed]]:
    """Returns the stages of every chain."""
    rectified = nn.relu(operands.x)
    found: list[list[Normed]] = [[] for _ in branches.chains]
    separable = []
    for i, chain in enumerate(operands.kernels):
        if chain[0].mix is not None:
            separable.append(i)
            continue
        taps, pad = chain[0].taps.astype(rectified.dtype), chain[0].taps.shape[1] // 2
        z = stacked_conv(rectified, taps, (1, 1), (pad, pad))
        z, images = order.in_parts(z)
        found[i].append(_normed(z, images, chain))
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
            normed = normed.of_chains(slice(len(members)), len(separable))
            x = order.of_images(_rectified(normed), normed.images)
        z, images = order.separable(x, *_merged(kernels, stages, x.dtype))
        normed = _normed(z, images, kernels)
        for place, i in enumerate(members):
            found[i].append(normed.of_chains(place, len(members)))
    return found


def _by_channel(values: jax.Array) -> jax.Array:
    """Returns `[N, C]` beside `[N, G, C, P]`."""
    return values[:, None, :, None]


def _rectified(normed: Normed) -> jax.Array:
    y = _by_channel(normed.factor) * normed.z + _by_channel(normed.shift)
    # In z's dtype before the rectifier: so is the gradient then that passes it and is stored.
    return nn.relu(y.astype(normed.z.dtype))


def _merged(
    kernels: Sequence[StageKernels], stages: Sequence[Stage], dtype: Any
) -> tuple[Taps, jax.Array, int]:
    """Returns what an order's `separable` takes beside x, for m chains of n edges.

    N = n * m; an edge's chains are neighbours.
    """
    places = [
        (chain, row, column)
        for chain, (kernel, stage) in enumerate(zip(kernels, stages, strict=True))
        for row in reach(kernel.taps.shape[1], stage.dilation)
        for column in reach(kernel.taps.shape[1], stage.dilation)
    ]
    edges, *_, channels = kernels[0].taps.shape
    flat = [kernel.taps.reshape(edges, -1, channels) for kernel in kernels]
    values = jnp.concatenate(flat, 1).astype(dtype).transpose(2, 0, 1)
    mix = jnp.stack([k.mix for k in kernels if k.mix is not None], 1)
    mix = mix.reshape(-1, *mix.shape[2:]).astype(dtype)
    return Taps(values, np.array(places)), mix, stages[0].stride


def _normed(
    z: jax.Array, images: Images, kernels: Sequence[StageKernels] = ()
) -> Normed:
    """Returns the batch norms of z `[N, G, C, P]`, with scale and shift of `kernels`, if any.

    Both sums are one pass around the first pixel's value, which may be any number near the
    mean: a difference of large squares would lose the variance. Of bfloat16 they are around
    0: what that loses of a sum in float32 is less than z has lost.
    """
    values = z.astype(exact(z.dtype))
    pivot: Any = 0.0
    if z.dtype != jnp.bfloat16:
        pivot = lax.stop_gradient(values[:, :1, :, :1])
        values -= pivot
        pivot = pivot[:, 0, :, 0]
    count = z[0, :, 0].size
    # Over the numbers of a part, then over the parts: no part moves for it.
    mean = values.sum(3).sum(1) * (1 / count)
    variance = jnp.square(values).sum(3).sum(1) * (1 / count) - jnp.square(mean)
    variance = jnp.maximum(variance, 0)
    mean += pivot
    factor = lax.rsqrt(variance + EPSILON)
    scales = [kernel.scale for kernel in kernels if kernel.scale is not None]
    shifts = [kernel.shift for kernel in kernels if kernel.shift is not None]
    if scales:
        factor *= jnp.stack(scales, 1).reshape(factor.shape)
    shift = -mean * factor
    if shifts:
        shift += jnp.stack(shifts, 1).reshape(shift.shape)
    unbiased = variance * (count / max(count - 1, 1))
    return Normed(z, factor, shift, (mean, unbiased), images)
