"""The mixed operations of one source state by our C++ kernels (mixed.cc), and their gradient.

The functions here are not differentiable by JAX; `models/fused.py` builds a derivative of
them.
"""

import math
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax

from darts_jax.kernels.calls import call
from darts_jax.kernels.packing import native_unpack


class StageKernels(NamedTuple):
    """The parameters of one stage, and of the batch norm after it, for n edges."""

    taps: jax.Array  # [n, K, K, C], the depthwise kernels; [n, K, K, C, C'] where dense
    mix: jax.Array | None = None  # [n, C, C'], the pointwise kernels; None where dense
    scale: jax.Array | None = None  # [n, C'], as shift; None (of all stages): 1 and 0
    shift: jax.Array | None = None


class Stage(NamedTuple):
    """ReLU, depthwise, pointwise, batch norm: half a separable convolution.

    Or, by its kernels, ReLU, dense convolution, batch norm: the first of a chain, of stride
    and dilation 1.
    """

    stride: int
    dilation: int


class Shared(NamedTuple):
    """What is the same for all edges: the source state itself, or a 3x3 pool of it."""

    kind: str  # in KINDS
    normalised: bool  # whether a batch norm follows


KINDS = ("identity", "max_pool", "avg_pool")  # in the order of pooling.h


class Branches(NamedTuple):
    """What is mixed: chains of one or two stages, then values that the edges share."""

    chains: tuple[tuple[Stage, ...], ...]
    shared: tuple[Shared, ...] = ()
    stride: int = 1  # of the pools


class Operands(NamedTuple):
    """What a mixed operation is a function of."""

    x: jax.Array  # [C, B, H, W], the source state
    weights: jax.Array  # [n, P], of the chains, then of the shared values
    kernels: tuple[tuple[StageKernels, ...], ...]  # [chain][stage]


class Kept(NamedTuple):
    """What the gradient needs beside the operands: every branch's, one after another.

    Where stages work on small images, z lies in an order of their own (lanes.h).
    """

    z: jax.Array  # before each batch norm, and the pools
    moments: jax.Array  # mean and biased variance of each batch norm


def _z_shapes(operands: Operands, branches: Branches) -> list[list[tuple[int, ...]]]:
    """Returns the shape `[n, C', B, H', W']` of each stage's z."""
    shapes = []
    for kernels, stages in zip(operands.kernels, branches.chains, strict=True):
        chain: list[tuple[int, ...]] = []
        _, batch, *image = operands.x.shape
        for kernel, stage in zip(kernels, stages, strict=True):
            dense = kernel.mix is None
            assert not dense or (not chain and stage == Stage(1, 1)), "see Stage"
            edges, *_, channels = (
                kernel.taps if kernel.mix is None else kernel.mix
            ).shape
            image = [-(-size // stage.stride) for size in image]
            chain.append((edges, channels, batch, *image))
        shapes.append(chain)
    return shapes


def _result_shape(operands: Operands, branches: Branches) -> tuple[int, ...]:
    chains = _z_shapes(operands, branches)
    if chains:
        return chains[0][-1]
    channels, batch, *image = operands.x.shape
    image = [-(-size // branches.stride) for size in image]
    return (len(operands.weights), channels, batch, *image)


def _attributes(
    operands: Operands, branches: Branches, epsilon: float
) -> dict[str, Any]:
    plan = []
    for stages in branches.chains:
        assert 1 <= len(stages) <= 2, "the kernel's scratch array is for two stages"
        plan += [len(stages), *(number for stage in stages for number in stage)]
    shared = [n for s in branches.shared for n in (KINDS.index(s.kind), s.normalised)]
    affine = bool(operands.kernels) and operands.kernels[0][0].scale is not None
    return {
        "plan": np.array(plan, np.int64),
        "shared": np.array(shared, np.int64),
        "stride": np.int64(branches.stride),
        "affine": affine,
        "epsilon": np.float64(epsilon),
    }


def _flat(operands: Operands) -> list[jax.Array]:
    return [operands.x, operands.weights, *jax.tree.leaves(operands.kernels)]


def mixed_forward(
    operands: Operands, branches: Branches, epsilon: float
) -> tuple[jax.Array, Kept]:
    """Returns the weighted sum of all branches `[n, C', B, H', W']`, and what is kept.

    epsilon: added to the variances.
    """
    dtype, shapes = operands.x.dtype, _z_shapes(operands, branches)
    rows = [shape[0] * shape[1] for chain in shapes for shape in chain]
    rows += [len(operands.x) for shared in branches.shared if shared.normalised]
    result = _result_shape(operands, branches)
    pools = sum(shared.kind != "identity" for shared in branches.shared)
    size = sum(int(np.prod(shape)) for chain in shapes for shape in chain)
    size += pools * int(np.prod(result[1:]))
    mixed, *kept = call(
        "MixedForward",
        (
            jax.ShapeDtypeStruct(result, dtype),
            jax.ShapeDtypeStruct((size,), dtype),
            jax.ShapeDtypeStruct((2 * sum(rows),), dtype),
        ),
        *_flat(operands),
        **_attributes(operands, branches, epsilon),
    )
    return mixed, Kept(*kept)


def moments_of(operands: Operands, branches: Branches, moments: jax.Array) -> Any:
    """Returns (mean, unbiased variance) of every batch norm of every branch, in its order.

    As running statistics take them: `[n, C']` each, those of a shared value the same for all
    edges. No gradient flows through them.
    """
    # Stopped as a whole: what follows is then traced without its derivatives.
    moments = lax.stop_gradient(moments)
    edges, result = len(operands.weights), _result_shape(operands, branches)
    norms: list[Any] = [*_z_shapes(operands, branches)]
    for shared in branches.shared:
        image = operands.x.shape if shared.kind == "identity" else result[1:]
        norms.append([(1, *image)] if shared.normalised else [])
    places, factors, at = [], [], 0
    for rows, channels, *image in (shape for chain in norms for shape in chain):
        count = math.prod(image)
        for factor in (1.0, count / max(count - 1, 1)):
            place = at + np.arange(rows * channels).reshape(rows, channels)
            places.append(np.broadcast_to(place, (edges, channels)))
            factors.append(np.full(places[-1].size, factor, moments.dtype))
            at += rows * channels
    if not places:
        return tuple(() for _ in norms)
    order = np.concatenate([place.ravel() for place in places])
    if edges > 1 and branches.shared:  # else they are in order
        moments = moments.at[order].get(mode="promise_in_bounds")
    scaled = moments * np.concatenate(factors)
    # One call: XLA would compile a loop of its own for every slice.
    parts = iter(native_unpack(scaled, tuple(place.shape for place in places)))
    return tuple(tuple((next(parts), next(parts)) for _ in chain) for chain in norms)


def _like(value: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(value.shape, value.dtype)


def _scratch(
    operands: Operands, branches: Branches, times: int = 1
) -> jax.ShapeDtypeStruct:
    """Returns room for what lies between the two stages of every chain that has two."""
    firsts = [
        int(np.prod(chain[0]))
        for chain in _z_shapes(operands, branches)
        if len(chain) > 1
    ]
    return jax.ShapeDtypeStruct((times * sum(firsts),), operands.x.dtype)


def mixed_backward(
    operands: Operands,
    branches: Branches,
    kept: Kept,
    gradient: jax.Array,
    epsilon: float,
    wanted: int,
) -> Operands:
    """Returns the gradients of the operands; None in the place of those not wanted.

    Args:
        operands: as for `mixed_forward`, like branches and epsilon.
        branches: what is mixed.
        kept: by `mixed_forward`.
        gradient: `[n, C', B, H', W']`, of the sum.
        epsilon: added to the variances.
        wanted: 0: only of the weights; 1: of x too; 2: of all.
    """

    results = [_like(operands.weights)]
    if wanted >= 1:
        results.append(_scratch(operands, branches))
        results.append(_like(operands.x))
    if wanted >= 2:
        results += map(_like, jax.tree.leaves(operands.kernels))
    found = call(
        "MixedBackward",
        tuple(results),
        *_flat(operands),
        *kept,
        gradient,
        **_attributes(operands, branches, epsilon),
        wanted=np.int64(wanted),
    )
    gradients: Any = jax.tree.map(lambda _: None, operands)
    gradients = gradients._replace(weights=found[0])
    if wanted >= 1:
        gradients = gradients._replace(x=found[2])
    if wanted >= 2:
        kernels = jax.tree.unflatten(jax.tree.structure(operands.kernels), found[3:])
        gradients = gradients._replace(kernels=kernels)
    return gradients


def mixed_forward_tangent(
    operands: Operands,
    branches: Branches,
    kept: Kept,
    tangents: Operands,
    epsilon: float,
) -> tuple[jax.Array, Kept]:
    """Returns how the results of `mixed_forward` change with the operands' tangents."""
    results = (_like(kept.z), _like(kept.moments))
    shape = _result_shape(operands, branches)
    mixed, *changed = call(
        "MixedForwardTangent",
        (jax.ShapeDtypeStruct(shape, operands.x.dtype), *results),
        *_flat(operands),
        *kept,
        *_flat(tangents),
        **_attributes(operands, branches, epsilon),
    )
    return mixed, Kept(*changed)


def mixed_backward_tangent(
    operands: Operands,
    branches: Branches,
    kept: Kept,
    gradient: jax.Array,
    tangents: tuple[Operands, Kept, jax.Array],
    epsilon: float,
) -> Operands:
    """Returns how the results of `mixed_backward` with wanted=1 change.

    tangents: of operands, what is kept, and the gradient.
    """
    changes, kept_changes, gradient_change = tangents
    _, weights, x = call(
        "MixedBackwardTangent",
        (
            _scratch(operands, branches, 2),
            *map(_like, (operands.weights, operands.x)),
        ),
        *(*_flat(operands), *kept, gradient),
        *(*_flat(changes), *kept_changes, gradient_change),
        **_attributes(operands, branches, epsilon),
    )
    none: Any = jax.tree.map(lambda _: None, operands)
    return none._replace(weights=weights, x=x)
