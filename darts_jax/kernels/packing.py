"""Many arrays as one vector, and back, by our C++ kernels (packing.cc).

XLA:CPU compiles a loop of its own for every part of a concatenation and for every slice,
which doubled the compilation of a small search. Here each way is a single call.

Both maps are linear and each is the transpose of the other, so two JAX primitives are closed
under every order and mode of differentiation:

    Pack(parts) = whole        Unpack(whole) = parts
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from darts_jax.kernels.calls import call

Shape = tuple[int, ...]


def native_pack(parts: Sequence[jax.Array]) -> jax.Array:
    """Returns the numbers of all parts, at least one and all of one dtype, as `[N]`."""
    return PACK.bind(*parts)


def native_unpack(whole: jax.Array, shapes: tuple[Shape, ...]) -> list[jax.Array]:
    """Returns the parts of these shapes that `native_pack` made `whole` of."""
    return UNPACK.bind(whole, shapes=shapes)


def _run_pack(*parts: Any) -> Any:
    number = sum(part.size for part in parts)
    return call("Pack", jax.ShapeDtypeStruct((number,), parts[0].dtype), *parts)


def _run_unpack(whole: Any, *, shapes: tuple[Shape, ...]) -> Any:
    return call("Unpack", [jax.ShapeDtypeStruct(s, whole.dtype) for s in shapes], whole)


def _batched_pack(parts: Any, axes: Any) -> Any:
    size = next(p.shape[a] for p, a in zip(parts, axes, strict=True) if a is not None)
    moved = [
        jnp.broadcast_to(part, (size, *part.shape))
        if axis is None
        else jnp.moveaxis(part, axis, 0)
        for part, axis in zip(parts, axes, strict=True)
    ]
    rows = [part.reshape(size, math.prod(part.shape[1:])) for part in moved]
    return jnp.concatenate(rows, 1), 0


def _batched_unpack(wholes: Any, axes: Any, *, shapes: tuple[Shape, ...]) -> Any:
    whole, start, parts = jnp.moveaxis(wholes[0], axes[0], 0), 0, []
    for shape in shapes:
        end = start + math.prod(shape)
        parts.append(whole[:, start:end].reshape(len(whole), *shape))
        start = end
    return parts, [0] * len(parts)


def _transposed_pack(whole: Any, *parts: Any) -> Any:
    # Those that are not undefined are zeros that a derivative was filled with.
    shapes = tuple(
        p.aval.shape if ad.is_undefined_primal(p) else p.shape for p in parts
    )
    found = UNPACK.bind(whole, shapes=shapes)
    undefined = map(ad.is_undefined_primal, parts)
    return [f if u else None for f, u in zip(found, undefined, strict=True)]


def _transposed_unpack(parts: Any, whole: Any, *, shapes: tuple[Shape, ...]) -> Any:
    dtype = whole.aval.dtype
    filled = [
        jnp.zeros(shape, dtype) if type(part) is ad.Zero else part
        for part, shape in zip(parts, shapes, strict=True)
    ]
    return [PACK.bind(*filled)]


PACK, UNPACK = Primitive("pack"), Primitive("unpack")
UNPACK.multiple_results = True

PACK.def_impl(jax.jit(_run_pack))
UNPACK.def_impl(jax.jit(_run_unpack, static_argnames="shapes"))
PACK.def_abstract_eval(
    lambda *parts: jax.core.ShapedArray((sum(p.size for p in parts),), parts[0].dtype)
)
UNPACK.def_abstract_eval(
    lambda whole, *, shapes: [jax.core.ShapedArray(s, whole.dtype) for s in shapes]
)
mlir.register_lowering(
    PACK, mlir.lower_fun(_run_pack, multiple_results=False), platform="cpu"
)
mlir.register_lowering(
    UNPACK, mlir.lower_fun(_run_unpack, multiple_results=True), platform="cpu"
)
ad.deflinear2(PACK, _transposed_pack)
ad.deflinear2(UNPACK, _transposed_unpack)
batching.primitive_batchers[PACK] = _batched_pack
batching.primitive_batchers[UNPACK] = _batched_unpack
