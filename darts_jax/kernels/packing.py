"""Many arrays as one vector, and back, on CPUs by our C++ kernels (packing.cc).

XLA:CPU compiles a loop of its own for every part of a concatenation and for every slice,
which doubled the compilation of a small search. Here each way is a single call. Elsewhere
they are a concatenation and slices.

Both maps are linear and each is the transpose of the other, so two JAX primitives are closed
under every order and mode of differentiation:

    Pack(parts) = whole        Unpack(whole) = parts

Both may have leading axes `lead`, of vmap: parts `[*lead, *shape]`, the whole `[*lead, N]`.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from darts_jax.kernels.calls import call

Shape = tuple[int, ...]


def native_pack(parts: Sequence[jax.Array]) -> jax.Array:
    """Returns the numbers of all parts, at least one and all of one dtype, as `[N]`."""
    return PACK.bind(*parts, lead=())


def native_unpack(whole: jax.Array, shapes: tuple[Shape, ...]) -> list[jax.Array]:
    """Returns the parts of these shapes that `native_pack` made `whole` of."""
    return UNPACK.bind(whole, shapes=shapes, lead=())


def _whole(parts: Sequence[Any], lead: Shape) -> tuple[Shape, Any]:
    """Returns shape and dtype of the vector."""
    number = sum(math.prod(part.shape[len(lead) :]) for part in parts)
    return (*lead, number), parts[0].dtype


def _run_pack(*parts: Any, lead: Shape) -> Any:
    rows = np.int64(math.prod(lead))
    result = jax.ShapeDtypeStruct(*_whole(parts, lead))
    return call("Pack", result, *parts, rows=rows)


def _run_unpack(whole: Any, *, shapes: tuple[Shape, ...], lead: Shape) -> Any:
    rows = np.int64(math.prod(lead))
    results = [jax.ShapeDtypeStruct((*lead, *shape), whole.dtype) for shape in shapes]
    return call("Unpack", results, whole, rows=rows)


def plain_pack(*parts: Any, lead: Shape) -> Any:
    """Returns the whole of parts `[*lead, *shape]` by XLA's own operations."""
    return jnp.concatenate([part.reshape(*lead, -1) for part in parts], -1)


def plain_unpack(whole: Any, *, shapes: tuple[Shape, ...], lead: Shape) -> Any:
    """Returns the parts of these shapes by XLA's own operations."""
    ends = np.cumsum([math.prod(shape) for shape in shapes])
    parts = jnp.split(whole, ends[:-1], -1)
    return [part.reshape(*lead, *s) for part, s in zip(parts, shapes, strict=True)]


def _batched_pack(parts: Any, axes: Any, *, lead: Shape) -> Any:
    size = next(p.shape[a] for p, a in zip(parts, axes, strict=True) if a is not None)
    moved = [
        jnp.broadcast_to(part, (size, *part.shape))
        if axis is None
        else jnp.moveaxis(part, axis, 0)
        for part, axis in zip(parts, axes, strict=True)
    ]
    return PACK.bind(*moved, lead=(size, *lead)), 0


def _batched_unpack(wholes: Any, axes: Any, *, lead: Shape, **shapes: Any) -> Any:
    whole = jnp.moveaxis(wholes[0], axes[0], 0)
    parts = UNPACK.bind(whole, lead=(len(whole), *lead), **shapes)
    return parts, [0] * len(parts)


def _transposed_pack(whole: Any, *parts: Any, lead: Shape) -> Any:
    undefined = [ad.is_undefined_primal(part) for part in parts]
    # Those that are not undefined are zeros that a derivative was filled with.
    every = [p.aval if u else p for p, u in zip(parts, undefined, strict=True)]
    shapes = tuple(part.shape[len(lead) :] for part in every)
    found = UNPACK.bind(whole, shapes=shapes, lead=lead)
    return [f if u else None for f, u in zip(found, undefined, strict=True)]


def _transposed_unpack(
    parts: Any, whole: Any, *, shapes: tuple[Shape, ...], lead: Shape
) -> Any:
    filled = [
        jnp.zeros((*lead, *shape), whole.aval.dtype) if type(part) is ad.Zero else part
        for part, shape in zip(parts, shapes, strict=True)
    ]
    return [PACK.bind(*filled, lead=lead)]


PACK, UNPACK = Primitive("pack"), Primitive("unpack")
UNPACK.multiple_results = True

PACK.def_impl(jax.jit(_run_pack, static_argnames="lead"))
UNPACK.def_impl(jax.jit(_run_unpack, static_argnames=("shapes", "lead")))
PACK.def_abstract_eval(lambda *parts, lead: jax.core.ShapedArray(*_whole(parts, lead)))
UNPACK.def_abstract_eval(
    lambda whole, *, shapes, lead: [
        jax.core.ShapedArray((*lead, *shape), whole.dtype) for shape in shapes
    ]
)
mlir.register_lowering(PACK, mlir.lower_fun(plain_pack, multiple_results=False))
mlir.register_lowering(UNPACK, mlir.lower_fun(plain_unpack, multiple_results=True))
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
