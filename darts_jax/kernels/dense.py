"""Dense convolution of stride 1 by our C++ kernels, differentiable any number of times.

The convolution is bilinear in image and kernel, and so is the gradient of its kernel. The
gradient of its image is the convolution by the kernel turned around, so two JAX primitives,
each declared bilinear, are closed under every order and mode of differentiation:

    Convolve(x, k) = y        KernelGradient(x, dy) = dk        Convolve(dy, turned(k)) = dx
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from darts_jax.kernels.calls import call

Shape = tuple[int, ...]


def native_dense(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves images on the CPU with stride 1 and zero padding (K - 1) / 2.

    Args:
        x: `[C, B, H, W]`; what is not float64 is computed in float32.
        kernel: `[K, K, C, N]`, K odd.

    Returns:
        `[N, B, H, W]`.
    """
    exact = jnp.promote_types(x.dtype, jnp.float32)
    y = CONVOLVE.bind(x.astype(exact), kernel.astype(exact))
    return y.astype(x.dtype)


def _turned(kernel: jax.Array) -> jax.Array:
    return kernel[::-1, ::-1].swapaxes(2, 3)


def _convolved(x: Any, kernel: Any) -> Shape:
    return (kernel.shape[3], *x.shape[1:])


def _of_kernel(x: Any, dy: Any, *, size: int) -> Shape:
    return size, size, x.shape[0], dy.shape[0]


def _primitive(symbol: str, shape_of: Callable[..., Shape], *static: str) -> Primitive:
    """Returns the primitive of a kernel whose result has the shape `shape_of(a, b)`."""
    primitive = Primitive(symbol)

    def run(a: Any, b: Any, **shapes: int) -> Any:
        shape = shape_of(a, b, **shapes)
        return call(
            symbol,
            jax.ShapeDtypeStruct(shape, a.dtype),
            a,
            b,
            image=np.array(a.shape, np.int64),
            taps=np.array(shape if shapes else b.shape, np.int64),
        )

    def abstract(a: Any, b: Any, **shapes: int) -> Any:
        return jax.core.ShapedArray(shape_of(a, b, **shapes), a.dtype)

    primitive.def_impl(jax.jit(run, static_argnames=static))
    primitive.def_abstract_eval(abstract)
    mlir.register_lowering(
        primitive, mlir.lower_fun(run, multiple_results=False), platform="cpu"
    )
    batching.primitive_batchers[primitive] = functools.partial(_batched, primitive)
    return primitive


def _batched(primitive: Primitive, operands: Any, axes: Any, **static: Any) -> Any:
    """vmap: one after another, since both operands have an axis of their own."""
    size = next(
        o.shape[a] for o, a in zip(operands, axes, strict=True) if a is not None
    )

    def number(i: int) -> Any:
        taken = (
            o if a is None else jnp.take(o, i, axis=a)
            for o, a in zip(operands, axes, strict=True)
        )
        return primitive.bind(*taken, **static)

    return jnp.stack([number(i) for i in range(size)]), 0


CONVOLVE = _primitive("DenseForward", _convolved)
KERNEL_GRADIENT = _primitive("DenseKernelGradient", _of_kernel, "size")

# Each is given the cotangent of its result and the operand that is kept.
ad.defbilinear(
    CONVOLVE,
    lambda dy, x, k: CONVOLVE.bind(dy, _turned(k)),
    lambda dy, x, k: KERNEL_GRADIENT.bind(x, dy, size=k.aval.shape[0]),
)
ad.defbilinear(
    KERNEL_GRADIENT,
    lambda dk, x, dy, size: CONVOLVE.bind(dy, _turned(dk)),
    lambda dk, x, dy, size: CONVOLVE.bind(x, dk),
)
