"""Max and average pooling by our C++ kernels, differentiable any number of times.

Where a max pool's choice of inputs does not change it is linear: `Pick(x, taps)`, whose
transpose `Place(dy, taps)` adds every dy to the input that was chosen.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from darts_jax.kernels.calls import call
from darts_jax.kernels.depthwise import native_depthwise

Shape = tuple[int, ...]


def _smaller(image: Shape, stride: int) -> Shape:
    return image[0], -(-image[1] // stride), -(-image[2] // stride)


def _call(symbol: str, results: Any, *operands: Any, image: Shape, stride: int) -> Any:
    shapes = {"image": np.array(image, np.int64), "stride": np.int64(stride)}
    return call(symbol, results, *operands, size=np.int64(3), **shapes)


def native_max_pool(x: jax.Array, stride: int) -> jax.Array:
    """3x3 max pool with padding 1, `[..., H, W]` to `[..., H', W']`.

    Of equal values the first in row-major order takes the gradient, as in PyTorch.
    """
    flat = x.reshape(-1, *x.shape[-2:])
    y, _ = MAX_POOL.bind(flat, image=flat.shape, stride=stride)
    return y.reshape(*x.shape[:-2], *y.shape[-2:])


def native_avg_pool(x: jax.Array, stride: int) -> jax.Array:
    """3x3 average pool with padding 1, `[C, B, H, W]` to `[C, B, H', W']`.

    Padding is left out of the count: a sum by a depthwise convolution with ones, divided.
    """
    ones = jnp.ones((1, 3, 3, x.shape[0]), x.dtype)
    total = native_depthwise(x, ones, stride, 1)[0]
    counts = []
    for length, out in zip(x.shape[-2:], total.shape[-2:], strict=True):
        starts = np.arange(out) * stride - 1
        counts.append(np.minimum(starts + 3, length) - np.maximum(starts, 0))
    return total * jnp.asarray(1.0 / np.outer(*counts), x.dtype)


MAX_POOL = Primitive("max_pool")
MAX_POOL.multiple_results = True
PICK, PLACE = Primitive("pick"), Primitive("place")


def _run_max_pool(x: Any, *, image: Shape, stride: int) -> Any:
    shape = _smaller(image, stride)
    results = [
        jax.ShapeDtypeStruct(shape, x.dtype),
        jax.ShapeDtypeStruct(shape, jnp.uint8),
    ]
    return _call("MaxPool", results, x, image=image, stride=stride)


def _run_pick(x: Any, taps: Any, *, image: Shape, stride: int) -> Any:
    result = jax.ShapeDtypeStruct(_smaller(image, stride), x.dtype)
    return _call("Pick", result, x, taps, image=image, stride=stride)


def _run_place(dy: Any, taps: Any, *, image: Shape, stride: int) -> Any:
    result = jax.ShapeDtypeStruct(image, dy.dtype)
    return _call("Place", result, dy, taps, image=image, stride=stride)


def _shape_max_pool(x: Any, *, image: Shape, stride: int) -> Any:
    shape = _smaller(image, stride)
    return [
        jax.core.ShapedArray(shape, x.dtype),
        jax.core.ShapedArray(shape, jnp.dtype("uint8")),
    ]


def _shape_pick(x: Any, taps: Any, *, image: Shape, stride: int) -> Any:
    return jax.core.ShapedArray(_smaller(image, stride), x.dtype)


def _shape_place(dy: Any, taps: Any, *, image: Shape, stride: int) -> Any:
    return jax.core.ShapedArray(image, dy.dtype)


def _merge_mapped_axis(
    primitive: Primitive, operands: Any, axes: Any, **shapes: Any
) -> Any:
    """vmap: images are independent, so the mapped axis joins theirs."""
    size = next(
        o.shape[a] for o, a in zip(operands, axes, strict=True) if a is not None
    )
    merged = []
    for operand, axis in zip(operands, axes, strict=True):
        if axis is None:
            operand = jnp.broadcast_to(operand, (size, *operand.shape))
        else:
            operand = jnp.moveaxis(operand, axis, 0)
        merged.append(operand.reshape(-1, *operand.shape[2:]))
    images, *rest = shapes["image"]
    shapes |= {"image": (size * images, *rest)}
    results = primitive.bind(*merged, **shapes)
    split = [
        y.reshape(size, images, *y.shape[1:])
        for y in (results if primitive.multiple_results else [results])
    ]
    return (split, [0, 0]) if primitive.multiple_results else (split[0], 0)


for _primitive, _run, _shape in (
    (MAX_POOL, _run_max_pool, _shape_max_pool),
    (PICK, _run_pick, _shape_pick),
    (PLACE, _run_place, _shape_place),
):
    _primitive.def_impl(jax.jit(_run, static_argnames=("image", "stride")))
    _primitive.def_abstract_eval(_shape)
    mlir.register_lowering(
        _primitive,
        mlir.lower_fun(_run, multiple_results=_primitive.multiple_results),
        platform="cpu",
    )
    batching.primitive_batchers[_primitive] = functools.partial(
        _merge_mapped_axis, _primitive
    )


def _max_pool_jvp(primals: Any, tangents: Any, **shapes: Any) -> Any:
    (x,), (dx,) = primals, tangents
    y, taps = MAX_POOL.bind(x, **shapes)
    no_tangent = ad.Zero(jax.core.ShapedArray(taps.shape, jax.dtypes.float0))
    if isinstance(dx, ad.Zero):
        return [y, taps], [ad.Zero(jax.core.ShapedArray(y.shape, y.dtype)), no_tangent]
    return [y, taps], [PICK.bind(dx, taps, **shapes), no_tangent]


def _pick_jvp(dx: Any, x: Any, taps: Any, **shapes: Any) -> Any:
    return PICK.bind(dx, taps, **shapes)


def _place_jvp(ddy: Any, dy: Any, taps: Any, **shapes: Any) -> Any:
    return PLACE.bind(ddy, taps, **shapes)


ad.primitive_jvps[MAX_POOL] = _max_pool_jvp
ad.defjvp(PICK, _pick_jvp, None)
ad.defjvp(PLACE, _place_jvp, None)
ad.primitive_transposes[PICK] = lambda dy, x, taps, **shapes: [
    PLACE.bind(dy, taps, **shapes),
    None,
]
ad.primitive_transposes[PLACE] = lambda dx, dy, taps, **shapes: [
    PICK.bind(dx, taps, **shapes),
    None,
]
