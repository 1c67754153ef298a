"""A kernel in the place of a JAX function, which lends it its derivatives."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Arrays = Sequence[jax.Array]


def substitute(
    name: str, kernel: Callable[..., Arrays], plain: Callable[..., Arrays]
) -> Callable[..., Arrays]:
    """Returns a function that runs `kernel` and is differentiated and mapped as `plain`.

    Args:
        name: of the primitive that stands for it in a program.
        kernel: `(*arrays, **static) -> arrays`, static values hashable.
        plain: the same function by differentiable operations, to any order; also its
            transpose in those arrays in which it is linear.
    """
    primitive = Primitive(name)
    primitive.multiple_results = True

    def abstract(*avals: Any, **static: Any) -> Any:
        shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in avals]
        results = jax.eval_shape(lambda *arrays: kernel(*arrays, **static), *shapes)
        return [jax.core.ShapedArray(r.shape, r.dtype) for r in results]

    def jvp(primals: Any, tangents: Any, **static: Any) -> Any:
        tangents = [
            jnp.zeros(p.shape, p.dtype) if type(t) is ad.Zero else t
            for p, t in zip(primals, tangents, strict=True)
        ]
        out = primitive.bind(*primals, **static)
        _, change = jax.jvp(
            lambda *arrays: tuple(plain(*arrays, **static)),
            tuple(primals),
            tuple(tangents),
        )
        return out, list(change)

    def transpose(cotangents: Any, *operands: Any, **static: Any) -> Any:
        linear = [i for i, o in enumerate(operands) if ad.is_undefined_primal(o)]

        def of_linear(*arrays: jax.Array) -> Any:
            filled = list(operands)
            for i, array in zip(linear, arrays, strict=True):
                filled[i] = array
            return tuple(plain(*filled, **static))

        avals = [operands[i].aval for i in linear]
        shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in avals]
        filled = [
            jnp.zeros(c.aval.shape, c.aval.dtype) if type(c) is ad.Zero else c
            for c in cotangents
        ]
        found: list[Any] = [None] * len(operands)
        into = jax.linear_transpose(of_linear, *shapes)(tuple(filled))
        for i, value in zip(linear, into, strict=True):
            found[i] = value
        return found

    def batched(operands: Any, axes: Any, **static: Any) -> Any:
        mapped = jax.vmap(lambda *arrays: tuple(plain(*arrays, **static)), axes)
        results = mapped(*operands)
        return list(results), [0] * len(results)

    @primitive.def_impl
    def run(*operands: jax.Array, **static: Any) -> Any:
        return jax.jit(lambda *arrays: tuple(kernel(*arrays, **static)))(*operands)

    primitive.def_abstract_eval(abstract)
    mlir.register_lowering(
        primitive, mlir.lower_fun(kernel, multiple_results=True), platform="cpu"
    )
    ad.primitive_jvps[primitive] = jvp
    ad.primitive_transposes[primitive] = transpose
    batching.primitive_batchers[primitive] = batched
    return primitive.bind
