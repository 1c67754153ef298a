"""The mixed operations of a source state as one function, for the CPU.

The oracle is the plain supernet: each primitive a module, gradients by JAX. Here the
separable and dilated convolutions of all edges that leave a source state, their batch norms,
the pools' batch norms and the weighted sum are one function with a derivative of its own,
over the C++ stages of `kernels/`: what lies between two batch norms is never stored, no
normalised copy is made, and the compiler sees a handful of operations in place of hundreds.

    mixed[e] = sum over p of w[e, p] * (z[p, e] - mean[p, e]) / sqrt(var[p, e] + epsilon)

Higher derivatives (exact second order) are those of the plain formulation.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from darts_jax.kernels.stage import (
    StageKernels,
    StageOutput,
    channel_moments,
    channel_sums,
    stage_backward,
    stage_forward,
)
from darts_jax.models.depthwise import depthwise_conv
from darts_jax.models.normalise import (
    plain_batch_norm,
    scale_and_shift,
    through_norm,
    wide,
)


class Stage(NamedTuple):
    """ReLU, depthwise, pointwise, batch norm: half a separable convolution."""

    stride: int
    dilation: int


# The primitives that are chains of stages; the stride is in the first.
BRANCHES = {
    "sep_conv_3x3": 2,
    "sep_conv_5x5": 2,
    "sep_conv_7x7": 2,
    "dil_conv_3x3": 1,
    "dil_conv_5x5": 1,
}


def stages_of(primitive: str, stride: int) -> tuple[Stage, ...]:
    """Returns the stages of a primitive of BRANCHES."""
    dilation = 2 if primitive.startswith("dil") else 1
    first = Stage(stride, dilation)
    return (first, Stage(1, 1)) if BRANCHES[primitive] == 2 else (first,)


Kernels = tuple[tuple[StageKernels, ...], ...]  # [branch][stage]
Moments = tuple[
    tuple[jax.Array, jax.Array], ...
]  # mean and biased variance of each norm


class Branches(NamedTuple):
    """What is mixed: chains of stages, then values that the edges share."""

    chains: tuple[tuple[Stage, ...], ...]
    normalised: tuple[
        bool, ...
    ] = ()  # of each shared value: whether a batch norm follows


class Operands(NamedTuple):
    """What `mixed_branches` is differentiated in."""

    x: jax.Array  # [C, B, H, W], the source state
    shared: tuple[jax.Array, ...]  # [C', B, H', W'] each: pools of x, or x itself
    weights: jax.Array  # [n, P], of the chains, then of the shared values
    kernels: Kernels


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def mixed_branches(
    operands: Operands, branches: Branches
) -> tuple[jax.Array, tuple[Moments, ...]]:
    """Returns the weighted sum of all branches of the n edges that leave one source state.

    Returns:
        `[n, C', B, H', W']`, and the moments of every branch's batch norms, `[n, C']` of a
        chain's and `[1, C']` of a shared value's; these are for the running statistics: no
        gradient flows through them.
    """
    mixed, moments, _ = _forward(operands, branches)
    return mixed, moments


def _forward_rule(operands: Operands, branches: Branches) -> tuple[Any, Any]:
    mixed, moments, outputs = _forward(operands, branches)
    return (mixed, moments), (operands, outputs)


def _backward_rule(branches: Branches, residuals: Any, cotangents: Any) -> Any:
    return (_backward(*residuals, cotangents[0], branches),)


mixed_branches.defvjp(_forward_rule, _backward_rule)


def _identity(channels: int, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Returns the scale and shift `[1, C]` of a stage whose input is not normalised."""
    return jnp.ones((1, channels), dtype), jnp.zeros((1, channels), dtype)


def _stage_input(
    x: jax.Array, outputs: list[StageOutput], i: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns what stage i of a chain reads: a value, its scale and its shift."""
    if i == 0:
        return x[None], *_identity(len(x), x.dtype)
    before = outputs[i - 1]
    return before.z, *scale_and_shift(before.mean, before.variance)


def _last_outputs(
    operands: Operands, branches: Branches
) -> tuple[list[list[StageOutput]], list[StageOutput]]:
    """Returns the outputs of each chain's stages, and of all branches the last."""
    chains: list[list[StageOutput]] = []
    for kernels, stages in zip(operands.kernels, branches.chains, strict=True):
        outputs: list[StageOutput] = []
        for i, (kernel, stage) in enumerate(zip(kernels, stages, strict=True)):
            inputs = _stage_input(operands.x, outputs, i)
            outputs.append(stage_forward(*inputs, kernel, *stage))
        chains.append(outputs)
    last = [outputs[-1] for outputs in chains]
    for value, normalised in zip(operands.shared, branches.normalised, strict=True):
        z = value[None]
        moments = channel_moments(z) if normalised else _identity(len(value), z.dtype)
        last.append(StageOutput(z, *moments))
    return chains, last


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _forward(operands: Operands, branches: Branches) -> Any:
    """Returns (mixed, moments, outputs of all stages)."""
    chains, last = _last_outputs(operands, branches)
    mixed: Any = 0.0
    norms = (*(True for _ in chains), *branches.normalised)
    for p, (output, normalised) in enumerate(zip(last, norms, strict=True)):
        weight = operands.weights[:, p, None]
        if normalised:
            scale, shift = scale_and_shift(output.mean, output.variance)
            mixed += wide(weight * scale) * output.z + wide(weight * shift)
        else:
            mixed += wide(weight) * output.z
    moments: list[Moments] = []
    for chain in chains:
        moments.append(tuple((output.mean, output.variance) for output in chain))
    for output, normalised in zip(
        last[len(chains) :], branches.normalised, strict=True
    ):
        moments.append(((output.mean, output.variance),) if normalised else ())
    return mixed, tuple(moments), (chains, last)


@_forward.defjvp
def _forward_jvp(branches: Branches, primals: Any, tangents: Any) -> Any:
    mixed, moments, outputs = _forward(*primals, branches)
    plain = functools.partial(plain_mixed_branches, branches=branches)
    _, (mixed_tangent, moments_tangent) = jax.jvp(plain, primals, tangents)
    # The outputs are functions of the operands that only `_backward` reads, and its own
    # derivative takes the operands' tangents.
    unused = jax.tree.map(jnp.zeros_like, outputs)
    return (mixed, moments, outputs), (mixed_tangent, moments_tangent, unused)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _backward(
    operands: Operands, outputs: Any, gradient: jax.Array, branches: Branches
) -> Operands:
    """Returns the gradients of the operands."""
    chains, last = outputs
    count = last[0].z[0, 0].size
    dweights, into = [], []
    for p, output in enumerate(last):
        products, sums = channel_sums(gradient, output.z)
        weight = operands.weights[:, p, None]
        *coefficients, projected = through_norm(
            output.mean, output.variance, count, products, sums, weight
        )
        normalised = p < len(chains) or branches.normalised[p - len(chains)]
        dweights.append((projected if normalised else products).sum(1))
        into.append(coefficients)
    dx = jnp.zeros_like(operands.x)
    dkernels = []
    for p, (chain, stages) in enumerate(zip(chains, branches.chains, strict=True)):
        back, found = _through_chain(
            operands.x, operands.kernels[p], chain, stages, gradient, into[p]
        )
        dx += back
        dkernels.append(found)
    dshared = []
    for p, normalised in enumerate(branches.normalised, len(chains)):
        a, alpha, beta = into[p]
        if not normalised:
            a = operands.weights[:, p, None] * jnp.ones_like(a)
        # One addition an edge: XLA:CPU's reduction over a leading axis is far slower.
        value = wide(a[0]) * gradient[0]
        for edge in range(1, len(gradient)):
            value += wide(a[edge]) * gradient[edge]
        if normalised:
            value += wide(alpha.sum(0)) + wide(beta.sum(0)) * last[p].z[0]
        dshared.append(value)
    return Operands(dx, tuple(dshared), jnp.stack(dweights, 1), tuple(dkernels))


def _through_chain(
    x: jax.Array,
    kernels: tuple[StageKernels, ...],
    outputs: list[StageOutput],
    stages: tuple[Stage, ...],
    gradient: jax.Array,
    coefficients: Any,
) -> tuple[jax.Array, tuple[StageKernels, ...]]:
    """Returns the gradients of x and of one chain's kernels."""
    found: list[StageKernels] = []
    for i in reversed(range(len(stages))):
        inputs = _stage_input(x, outputs, i)
        gradients = stage_backward(
            *inputs, kernels[i], outputs[i].z, gradient, tuple(coefficients), *stages[i]
        )
        gradient = gradients.x
        found.insert(0, gradients.kernels)
        if i:
            before = outputs[i - 1]
            count = before.z[0, 0].size
            # The gradient of the normalised value sums to these; it holds the norm's scale
            # already, so that a is one.
            _, alpha, beta, _ = through_norm(
                before.mean,
                before.variance,
                count,
                gradients.scale,
                gradients.shift,
                1.0,
            )
            coefficients = (jnp.ones_like(alpha), alpha, beta)
    return gradient[0], tuple(found)


@_backward.defjvp
def _backward_jvp(branches: Branches, primals: Any, tangents: Any) -> Any:
    def plain(operands: Operands, gradient: jax.Array) -> Operands:
        def mixed(operands: Operands) -> jax.Array:
            return plain_mixed_branches(operands, branches)[0]

        return jax.vjp(mixed, operands)[1](gradient)[0]

    operands, _, gradient = primals
    change, _, gradient_change = tangents
    _, tangent = jax.jvp(plain, (operands, gradient), (change, gradient_change))
    return _backward(*primals, branches), tangent


def plain_mixed_branches(
    operands: Operands, branches: Branches
) -> tuple[jax.Array, tuple[Moments, ...]]:
    """`mixed_branches` by differentiable operations: what higher derivatives are of."""

    def normalise(z: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        one, zero = jnp.ones(z.shape[:2], z.dtype), jnp.zeros(z.shape[:2], z.dtype)
        value, mean, variance = plain_batch_norm(z, one, zero)
        return value, (mean, variance)

    values: list[jax.Array] = []
    moments: list[Moments] = []
    for kernels, stages in zip(operands.kernels, branches.chains, strict=True):
        value, found = operands.x, []
        for kernel, stage in zip(kernels, stages, strict=True):
            y = depthwise_conv(
                jax.nn.relu(value),
                kernel.taps,
                stride=stage.stride,
                dilation=stage.dilation,
            )
            z = kernel.mix.swapaxes(1, 2) @ y.reshape(*y.shape[:2], -1)
            value, moment = normalise(z.reshape(*z.shape[:2], *y.shape[2:]))
            found.append(moment)
        values.append(value)
        moments.append(tuple(found))
    for shared, normalised in zip(operands.shared, branches.normalised, strict=True):
        value, moment = normalise(shared[None])
        values.append(value if normalised else shared[None])
        moments.append((moment,) if normalised else ())
    mixed: Any = 0.0
    for p, value in enumerate(values):
        mixed += wide(operands.weights[:, p, None]) * value
    return mixed, tuple(moments)
