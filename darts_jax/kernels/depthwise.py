"""Depthwise convolution by our C++ kernels, differentiable any number of times.

The convolution is bilinear in image and kernel, and so are its two gradients; the transpose
of each of the three maps is one of the other two. So three JAX primitives, each declared
bilinear, are closed under every order and mode of differentiation:

    Forward(x, k) = y        InputGradient(dy, k) = dx        KernelGradient(x, dy) = dk
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from darts_jax.kernels.calls import call

Shape = tuple[int, ...]


def native_depthwise(
    x: jax.Array, kernel: jax.Array, stride: int, dilation: int
) -> jax.Array:
    """Convolves every channel with its own kernels on the CPU.

    Args:
        x: `[C, B, H, W]`; what is not float64 is computed in float32.
        kernel: `[n, K, K, C]`, K odd.
        stride: of both image axes.
        dilation: of both image axes; zero padding is `dilation * (K - 1) / 2` on each side.

    Returns:
        `[n, C, B, ceil(H / stride), ceil(W / stride)]`.
    """
    exact = jnp.promote_types(x.dtype, jnp.float32)
    y = FORWARD.bind(
        x.astype(exact),
        kernel.astype(exact),
        image=x.shape,
        taps=kernel.shape,
        stride=stride,
        dilation=dilation,
    )
    return y.astype(x.dtype)


def _output_shape(image: Shape, taps: Shape, stride: int) -> Shape:
    return taps[0], *image[:2], -(-image[2] // stride), -(-image[3] // stride)


def _primitive(symbol: str) -> Primitive:
    """Returns the primitive of one map; all three take image, taps, stride and dilation."""
    primitive = Primitive(f"depthwise_{symbol}")

    def result_shape(image: Shape, taps: Shape, stride: int) -> Shape:
        if symbol == "Forward":
            return _output_shape(image, taps, stride)
        return image if symbol == "InputGradient" else taps

    def run(
        a: Any, b: Any, *, image: Shape, taps: Shape, stride: int, dilation: int
    ) -> Any:
        shape = result_shape(image, taps, stride)
        return call(
            symbol,
            jax.ShapeDtypeStruct(shape, a.dtype),
            a,
            b,
            image=np.array(image, np.int64),
            taps=np.array(taps, np.int64),
            stride=np.int64(stride),
            dilation=np.int64(dilation),
        )

    def abstract(
        a: Any, b: Any, *, image: Shape, taps: Shape, stride: int, **_: Any
    ) -> Any:
        return jax.core.ShapedArray(result_shape(image, taps, stride), a.dtype)

    static = ("image", "taps", "stride", "dilation")
    primitive.def_impl(functools.partial(jax.jit(run, static_argnames=static)))
    primitive.def_abstract_eval(abstract)
    mlir.register_lowering(
        primitive, mlir.lower_fun(run, multiple_results=False), platform="cpu"
    )
    batching.primitive_batchers[primitive] = functools.partial(_batched, primitive)
    return primitive


def _batched(
    primitive: Primitive,
    operands: Any,
    axes: Any,
    *,
    image: Shape,
    taps: Shape,
    **rest: Any,
) -> Any:
    """vmap: channels are independent, so the mapped axis joins theirs."""
    size = next(
        o.shape[a] for o, a in zip(operands, axes, strict=True) if a is not None
    )
    x, kernel, y = 0, 3, 1  # where the channels stand
    first, second, result = {
        FORWARD: (x, kernel, y),
        INPUT_GRADIENT: (y, kernel, x),
        KERNEL_GRADIENT: (x, y, kernel),
    }[primitive]
    merged = []
    for operand, axis, channel in zip(operands, axes, (first, second), strict=True):
        if axis is None:
            operand, axis = jnp.broadcast_to(operand, (size, *operand.shape)), 0
        moved = jnp.moveaxis(operand, axis, channel)
        shape = moved.shape
        merged.append(moved.reshape(*shape[:channel], -1, *shape[channel + 2 :]))
    channels = size * image[0]
    out = primitive.bind(
        *merged, image=(channels, *image[1:]), taps=(*taps[:3], channels), **rest
    )
    shape = out.shape
    out = out.reshape(*shape[:result], size, image[0], *shape[result + 1 :])
    return out, result


FORWARD, INPUT_GRADIENT, KERNEL_GRADIENT = map(
    _primitive, ("Forward", "InputGradient", "KernelGradient")
)

# Each is given the cotangent of its result and the operand that is kept.
ad.defbilinear(
    FORWARD,
    lambda dy, x, k, **shapes: INPUT_GRADIENT.bind(dy, k, **shapes),
    lambda dy, x, k, **shapes: KERNEL_GRADIENT.bind(x, dy, **shapes),
)
ad.defbilinear(
    INPUT_GRADIENT,
    lambda x, dy, k, **shapes: FORWARD.bind(x, k, **shapes),
    lambda x, dy, k, **shapes: KERNEL_GRADIENT.bind(x, dy, **shapes),
)
ad.defbilinear(
    KERNEL_GRADIENT,
    lambda k, x, dy, **shapes: INPUT_GRADIENT.bind(dy, k, **shapes),
    lambda k, x, dy, **shapes: FORWARD.bind(x, k, **shapes),
)
