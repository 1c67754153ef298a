"""The mixed operations of a source state as one function, for the CPU.

The oracle is the plain supernet: each primitive a module, gradients by JAX. Here the
separable, dilated and dense convolutions of all edges that leave a source state, its pools,
their batch norms and the weighted sum are one function with a derivative of its own, one C++
call forward and one backward (kernels/mixed.cc): what lies between two batch norms is never
stored, no normalised copy is made, and the compiler sees two operations in place of
hundreds.

    mixed[e] = sum over p of w[e, p] * (scale_p * (z[p, e] - mean[p, e])
                                        / sqrt(var[p, e] + epsilon) + shift_p)

In a search norms have no scale and shift. The operation of an edge of a derived network is
the case of one edge, one chain and weight 1. The exact second order is a tangent of both
calls, again one C++ call each; all other derivatives are those of the plain formulation.
"""

from typing import Any

import jax
import jax.numpy as jnp

from darts_jax.kernels.mixed import (
    Branches,
    Kept,
    Operands,
    Shared,
    Stage,
    StageKernels,
    mixed_backward,
    mixed_backward_tangent,
    mixed_forward,
    mixed_forward_tangent,
    moments_of,
)
from darts_jax.kernels.substitute import substitute, with_jvp
from darts_jax.models.depthwise import depthwise_conv, native
from darts_jax.models.layers import avg_pool, max_pool, stacked_conv
from darts_jax.models.normalise import EPSILON, plain_batch_norm, wide

__all__ = [
    "BRANCHES",
    "Branches",
    "SHARED",
    "Operands",
    "Shared",
    "StageKernels",
    "fuses",
    "fusible",
    "mixed_branches",
    "plain_mixed_branches",
    "stages_of",
]

# The primitives that are chains of so many stages; the stride is in the first.
BRANCHES = {
    "sep_conv_3x3": 2,
    "sep_conv_5x5": 2,
    "sep_conv_7x7": 2,
    "dil_conv_3x3": 1,
    "dil_conv_5x5": 1,
    "nor_conv_1x1": 1,
    "nor_conv_3x3": 1,
}

# Those that are fused where their stride is 1: dense convolutions, and skip connections.
_STRIDE_ONE = ("nor_conv_1x1", "nor_conv_3x3", "skip_connect")

# The primitives whose value is the same for all edges that leave a state.
SHARED = {
    "max_pool_3x3": "max_pool",
    "avg_pool_3x3": "avg_pool",
    "skip_connect": "identity",
}


def fusible(dtype: Any) -> bool:
    """Whether the function of this module can be used: our kernels are there for the dtype."""
    return dtype in (jnp.float32, jnp.float64) and native()


def fuses(primitive: str, stride: int) -> bool:
    """Whether the function of this module has the primitive of an edge of that stride."""
    known = primitive in BRANCHES or primitive in SHARED
    return known and (stride == 1 or primitive not in _STRIDE_ONE)


def stages_of(primitive: str, stride: int) -> tuple[Stage, ...]:
    """Returns the stages of a primitive of BRANCHES."""
    dilation = 2 if primitive.startswith("dil") else 1
    first = Stage(stride, dilation)
    return (first, Stage(1, 1)) if BRANCHES[primitive] == 2 else (first,)


def mixed_branches(operands: Operands, branches: Branches) -> tuple[jax.Array, Any]:
    """Returns the weighted sum of all branches of the n edges that leave one source state.

    Returns:
        `[n, C', B, H', W']`, and of every branch the moments (mean, unbiased variance) of its
        batch norms, `[n, C']` each; these are for the running statistics: no gradient flows
        through them.
    """
    # The kernels read every buffer by one type: the one that JAX would promote these to.
    dtype = jnp.result_type(*jax.tree.leaves(operands))
    operands = jax.tree.map(lambda operand: operand.astype(dtype), operands)
    mixed, kept = _mixed(operands, branches=branches)
    return mixed, moments_of(operands, branches, kept.moments)


def _mixed_by_kernel(
    operands: Operands, *, branches: Branches
) -> tuple[jax.Array, Kept]:
    return mixed_forward(operands, branches, EPSILON)


def _mixed_jvp(primals: Any, tangents: Any, *, branches: Branches) -> Any:
    mixed, kept = _mixed(*primals, branches=branches)
    flat, tree = jax.tree.flatten((*primals, kept, *tangents))
    change, *kept_change = _forward_tangent(*flat, tree=tree, branches=branches)
    return (mixed, kept), (change, Kept(*kept_change))


_mixed = with_jvp("mixed", _mixed_by_kernel, _mixed_jvp)


def _forward_tangent_by_kernel(*flat: jax.Array, tree: Any, branches: Branches) -> Any:
    operands, kept, tangents = jax.tree.unflatten(tree, flat)
    change, kept_change = mixed_forward_tangent(
        operands, branches, kept, tangents, EPSILON
    )
    return [change, *kept_change]


def _plain_forward_tangent(*flat: jax.Array, tree: Any, branches: Branches) -> Any:
    operands, kept, tangents = jax.tree.unflatten(tree, flat)

    def mixed(operands: Operands) -> jax.Array:
        return plain_mixed_branches(operands, branches)[0]

    _, change = jax.jvp(mixed, (operands,), (tangents,))
    # What is kept is a function of the operands that only `_backward` reads, and the plain
    # form of its tangent takes the operands' tangents.
    return [change, *map(jnp.zeros_like, kept)]


def _transposed(
    cotangents: Any, undefined: list[bool], *flat: Any, tree: Any, branches: Branches
) -> list[Any]:
    """Returns the gradients in the place of the tangents: what reverse mode runs."""
    number = (len(flat) - len(Kept._fields)) // 2  # leaves of the operands
    operands = jax.tree.unflatten(tree.children()[0], flat[:number])
    kept = Kept(*flat[number:-number])
    # An alphas step differentiates by the edge weights alone: half of the work falls away.
    of = jax.tree.unflatten(tree.children()[0], undefined[-number:])
    wanted = 2 if any(jax.tree.leaves(of.kernels)) else 1 if of.x else 0
    found = _backward(operands, kept, cotangents[0], branches=branches, wanted=wanted)
    gradients = tree.children()[0].flatten_up_to(found)
    return [None] * (number + len(kept)) + gradients


_forward_tangent = substitute(
    "mixed_forward_tangent",
    _forward_tangent_by_kernel,
    _plain_forward_tangent,
    _transposed,
)


def _backward_by_kernel(
    operands: Operands,
    kept: Kept,
    gradient: jax.Array,
    *,
    branches: Branches,
    wanted: int,
) -> Operands:
    return mixed_backward(operands, branches, kept, gradient, EPSILON, wanted)


def _backward_jvp(
    primals: Any, tangents: Any, *, branches: Branches, wanted: int
) -> Any:
    # Two calls in the place of one: where the kernels' gradients are not used after all (in
    # `bilevel.unrolled`), the compiler drops theirs.
    found = _backward(*primals, branches=branches, wanted=min(wanted, 1))
    flat, tree = jax.tree.flatten((primals, tangents))
    weights, x = _backward_tangent(*flat, tree=tree, branches=branches)
    change = found._replace(weights=weights)
    if wanted >= 1:
        change = change._replace(x=x)
    if wanted >= 2:
        every = _backward(*primals, branches=branches, wanted=wanted)
        found = found._replace(kernels=every.kernels)
        changes = _plain_gradients_tangent(primals, tangents, branches)
        change = change._replace(kernels=changes.kernels)
    return found, change


_backward = with_jvp("mixed_backward", _backward_by_kernel, _backward_jvp)


def _backward_tangent_by_kernel(*flat: jax.Array, tree: Any, branches: Branches) -> Any:
    (operands, kept, gradient), tangents = jax.tree.unflatten(tree, flat)
    change = mixed_backward_tangent(
        operands, branches, kept, gradient, tangents, EPSILON
    )
    return [change.weights, change.x]


def _plain_backward_tangent(*flat: jax.Array, tree: Any, branches: Branches) -> Any:
    primals, tangents = jax.tree.unflatten(tree, flat)
    change = _plain_gradients_tangent(primals, tangents, branches)
    return [change.weights, change.x]


def _plain_gradients_tangent(
    primals: Any, tangents: Any, branches: Branches
) -> Operands:
    """Returns how all gradients change; both are (operands, what is kept, the gradient)."""

    def mixed(operands: Operands) -> jax.Array:
        return plain_mixed_branches(operands, branches)[0]

    def gradients(operands: Operands, gradient: jax.Array) -> Operands:
        return jax.vjp(mixed, operands)[1](gradient)[0]

    # What is kept is a function of the operands, whose tangents are there.
    return jax.jvp(gradients, (primals[0], primals[2]), (tangents[0], tangents[2]))[1]


_backward_tangent = substitute(
    "mixed_backward_tangent", _backward_tangent_by_kernel, _plain_backward_tangent
)


def _plain_stage(x: jax.Array, kernel: StageKernels, stage: Stage) -> jax.Array:
    """Returns the stage's output before its norm, `[n, C', B, H', W']`."""
    u = jax.nn.relu(x)
    if kernel.mix is None:
        pad = kernel.taps.shape[1] // 2
        return stacked_conv(u, kernel.taps, (1, 1), (pad, pad))
    y = depthwise_conv(u, kernel.taps, stride=stage.stride, dilation=stage.dilation)
    z = kernel.mix.swapaxes(1, 2) @ y.reshape(*y.shape[:2], -1)
    return z.reshape(*z.shape[:2], *y.shape[2:])


def plain_mixed_branches(
    operands: Operands, branches: Branches
) -> tuple[jax.Array, Any]:
    """`mixed_branches` by differentiable operations: what higher derivatives are of."""

    def normalise(z: jax.Array, scale: Any = None, shift: Any = None) -> Any:
        scale = jnp.ones(z.shape[:2], z.dtype) if scale is None else scale
        shift = jnp.zeros(z.shape[:2], z.dtype) if shift is None else shift
        value, mean, variance = plain_batch_norm(z, scale, shift)
        count = z[0, 0].size
        variance *= count / max(count - 1, 1)
        edges = (
            len(operands.weights),
            z.shape[1],
        )  # more than z has, of a shared value
        moments = [jnp.broadcast_to(m, edges) for m in (mean, variance)]
        return value, tuple(moments)

    values: list[jax.Array] = []
    moments: list[Any] = []
    for kernels, stages in zip(operands.kernels, branches.chains, strict=True):
        value, found = operands.x, []
        for kernel, stage in zip(kernels, stages, strict=True):
            z = _plain_stage(value, kernel, stage)
            value, moment = normalise(z, kernel.scale, kernel.shift)
            found.append(moment)
        values.append(value)
        moments.append(tuple(found))
    for kind, normalised in branches.shared:
        value = operands.x
        if kind != "identity":
            pool = max_pool if kind == "max_pool" else avg_pool
            value = pool(value, stride=branches.stride)
        value = value[None]
        if normalised:
            value, moment = normalise(value)
        values.append(value)
        moments.append((moment,) if normalised else ())
    mixed: Any = 0.0
    for p, value in enumerate(values):
        mixed += wide(operands.weights[:, p, None]) * value
    return mixed, tuple(moments)
