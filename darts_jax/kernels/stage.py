"""One stage of a mixed operation by our C++ kernels, and its gradient (see stage.cc).

A stage is an affine map and ReLU, a depthwise and a pointwise convolution, and the moments
that the batch norm after it needs. The functions here are not differentiable by JAX; they
are what `models/fused.py` builds a derivative of.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from darts_jax.kernels.compiled import kernels


class StageKernels(NamedTuple):
    """The parameters of one stage for n edges."""

    taps: jax.Array  # [n, K, K, C], the depthwise kernels
    mix: jax.Array  # [n, C, C'], the pointwise kernels


class StageOutput(NamedTuple):
    """What a stage returns, before its batch norm."""

    z: jax.Array  # [n, C', B, H', W']
    mean: jax.Array  # [n, C'], of z over batch and image
    variance: jax.Array  # [n, C'], biased


def _call(symbol: str, results: Any, *operands: jax.Array, **attributes: int) -> Any:
    names = kernels()
    assert names is not None, "the caller asks for kernels() first"
    run = jax.ffi.ffi_call(names[symbol], results, vmap_method="sequential")
    return run(*operands, **{k: np.int64(v) for k, v in attributes.items()})


def stage_forward(
    x: jax.Array,
    scale: jax.Array,
    shift: jax.Array,
    kernels: StageKernels,
    stride: int,
    dilation: int,
) -> StageOutput:
    """Returns pointwise(depthwise(relu(scale * x + shift))) and its moments.

    Args:
        x: `[g, C, B, H, W]`, g = 1 for an input that the n edges share, or n.
        scale: `[g, C]`, as shift.
        shift: `[g, C]`.
        kernels: of the n edges.
        stride: of both image axes.
        dilation: of both image axes.
    """
    edges, _, out_channels = kernels.mix.shape
    image = (-(-x.shape[3] // stride), -(-x.shape[4] // stride))
    moments = jax.ShapeDtypeStruct((edges, out_channels), x.dtype)
    z = jax.ShapeDtypeStruct((edges, out_channels, x.shape[2], *image), x.dtype)
    return StageOutput(
        *_call(
            "StageForward",
            (z, moments, moments),
            *(x, scale, shift, *kernels),
            stride=stride,
            dilation=dilation,
        )
    )


class StageGradients(NamedTuple):
    """The gradients of a stage's operands, shaped like them."""

    x: jax.Array
    scale: jax.Array
    shift: jax.Array
    kernels: StageKernels


def stage_backward(
    x: jax.Array,
    scale: jax.Array,
    shift: jax.Array,
    kernels: StageKernels,
    z: jax.Array,
    gradient: jax.Array,
    coefficients: tuple[jax.Array, jax.Array, jax.Array],
    stride: int,
    dilation: int,
) -> StageGradients:
    """Returns the gradients of a stage for dz = a * gradient + alpha + beta * z.

    `coefficients` are (a, alpha, beta), each `[n, C']`: the gradient that a batch norm lets
    through is of this form, so it is never stored. The rest is as in `stage_forward`.
    """
    operands = (x, scale, shift, *kernels)
    results = tuple(jax.ShapeDtypeStruct(o.shape, o.dtype) for o in operands)
    dx, dscale, dshift, *dkernels = _call(
        "StageBackward",
        results,
        *(*operands, z, gradient, *coefficients),
        stride=stride,
        dilation=dilation,
    )
    return StageGradients(dx, dscale, dshift, StageKernels(*dkernels))


def channel_sums(gradient: jax.Array, z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the sums of gradient * z and of the gradient over batch and image.

    `gradient` is `[n, C, B, H, W]` and so is z, or z is `[1, C, B, H, W]`, shared by the n
    edges; the sums are `[n, C]`.
    """
    result = jax.ShapeDtypeStruct(gradient.shape[:2], z.dtype)
    products, sums = _call("Sums", (result, result), gradient, z)
    return products, sums


def channel_moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns mean and biased variance over batch and image, `[n, C]` of `[n, C, B, H, W]`."""
    result = jax.ShapeDtypeStruct(x.shape[:2], x.dtype)
    mean, variance = _call("Moments", (result, result), x)
    return mean, variance
