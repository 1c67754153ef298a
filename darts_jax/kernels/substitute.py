"""Kernels as JAX primitives: in the place of a function that lends them its derivatives, or
with a derivative of their own.

Primitives and not `jax.custom_jvp`: of a function in a `lax.scan`, which accumulates batches,
that rule is dropped once a gradient is taken, and the gradient of the gradient meets a call
that has none.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Arrays = Sequence[jax.Array]


def substitute(
    name: str,
    kernel: Callable[..., Arrays],
    plain: Callable[..., Arrays],
    transposed: Callable[..., Sequence[Any]] | None = None,
) -> Callable[..., Arrays]:
    """Returns a function that runs `kernel` and is differentiated and mapped as `plain`.

    Args:
        name: of the primitive that stands for it in a program.
        kernel: `(*arrays, **static) -> arrays`, static values hashable.
        plain: the same function by differentiable operations, to any order.
        transposed: `(cotangents, wanted, *arrays, **static) -> cotangents of the arrays` for
            the arrays in which it is linear, those with a true in `wanted`, a list (the
            others are None and what is returned for them is not used); None: by `plain`.
    """
    primitive = Primitive(name)
    primitive.multiple_results = True

    def jvp(primals: Any, tangents: Any, **static: Any) -> Any:
        out = primitive.bind(*primals, **static)
        _, change = jax.jvp(
            lambda *arrays: tuple(plain(*arrays, **static)),
            tuple(primals),
            tuple(map(_instantiated, primals, tangents)),
        )
        return out, list(change)

    def transpose(cotangents: Any, *operands: Any, **static: Any) -> Any:
        filled = [_filled(cotangent) for cotangent in cotangents]
        wanted = [ad.is_undefined_primal(o) for o in operands]
        if transposed is None:
            return _transposed(functools.partial(plain, **static), filled, operands)
        known = [None if w else o for o, w in zip(operands, wanted, strict=True)]
        into = transposed(filled, wanted, *known, **static)
        return [value if w else None for value, w in zip(into, wanted, strict=True)]

    def batched(operands: Any, axes: Any, **static: Any) -> Any:
        mapped = jax.vmap(lambda *arrays: tuple(plain(*arrays, **static)), axes)
        results = mapped(*operands)
        return list(results), [0] * len(results)

    _run_by(primitive, kernel)
    ad.primitive_jvps[primitive] = jvp
    ad.primitive_transposes[primitive] = transpose
    batching.primitive_batchers[primitive] = batched
    return primitive.bind


def with_jvp(
    name: str, kernel: Callable[..., Any], jvp: Callable[..., Any]
) -> Callable[..., Any]:
    """Returns the function of pytrees that runs `kernel` and is differentiated by `jvp`.

    Args:
        name: of the primitive that stands for it in a program.
        kernel: `(*pytrees, **static) -> pytree` of arrays, static values hashable.
        jvp: `(primals, tangents, **static) -> (results, their tangents)`, like the results of
            `kernel`; the tangents are arrays.
    """
    primitive = Primitive(name)
    primitive.multiple_results = True

    def flat_kernel(*flat: Any, tree: Any, **static: Any) -> list[Any]:
        return jax.tree.leaves(kernel(*jax.tree.unflatten(tree, flat), **static))

    def flat_jvp(primals: Any, tangents: Any, *, tree: Any, **static: Any) -> Any:
        full = map(_instantiated, primals, tangents)
        pair = (jax.tree.unflatten(tree, leaves) for leaves in (primals, full))
        results, changes = jvp(*pair, **static)
        return jax.tree.leaves(results), jax.tree.leaves(changes)

    def batched(operands: Any, axes: Any, **static: Any) -> Any:
        # One after another, and by the primitive: what is mapped is differentiated, too.
        mapped = {
            i: jnp.moveaxis(operand, axis, 0)
            for i, (operand, axis) in enumerate(zip(operands, axes, strict=True))
            if axis is not None
        }

        def one(rows: Any) -> Any:
            given = (rows.get(i, operand) for i, operand in enumerate(operands))
            return primitive.bind(*given, **static)

        results = jax.lax.map(one, mapped)
        return results, [0] * len(results)

    @functools.cache
    def result_tree(shapes: tuple[Any, ...], tree: Any, static: Any) -> Any:
        run = functools.partial(kernel, **dict(static))
        return jax.tree.structure(
            jax.eval_shape(run, *jax.tree.unflatten(tree, shapes))
        )

    def call(*arguments: Any, **static: Any) -> Any:
        flat, tree = jax.tree.flatten(arguments)
        found = primitive.bind(*flat, tree=tree, **static)
        into = result_tree(_shapes(flat), tree, tuple(static.items()))
        return jax.tree.unflatten(into, found)

    _run_by(primitive, flat_kernel)
    ad.primitive_jvps[primitive] = flat_jvp
    batching.primitive_batchers[primitive] = batched
    return call


def _run_by(primitive: Primitive, kernel: Callable[..., Arrays]) -> None:
    """Makes `kernel` what the primitive is, outside of programs and in them."""

    @functools.cache  # a network has the same shapes many times
    def results(shapes: tuple[Any, ...], static: tuple[tuple[str, Any], ...]) -> Any:
        run = functools.partial(kernel, **dict(static))
        found: Any = jax.eval_shape(run, *shapes)
        return [jax.core.ShapedArray(r.shape, r.dtype) for r in found]

    @primitive.def_impl
    def run(*operands: jax.Array, **static: Any) -> Any:
        return jax.jit(lambda *arrays: tuple(kernel(*arrays, **static)))(*operands)

    primitive.def_abstract_eval(
        lambda *avals, **static: results(_shapes(avals), tuple(static.items()))
    )
    mlir.register_lowering(
        primitive, mlir.lower_fun(kernel, multiple_results=True), platform="cpu"
    )


def _shapes(arrays: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arrays)


def _instantiated(primal: Any, tangent: Any) -> jax.Array:
    absent = type(tangent) is ad.Zero
    return jnp.zeros(primal.shape, primal.dtype) if absent else tangent


def _filled(cotangent: Any) -> jax.Array:
    if type(cotangent) is not ad.Zero:
        return cotangent
    absent: Any = cotangent.aval
    return jnp.zeros(absent.shape, absent.dtype)


def _transposed(
    function: Callable[..., Arrays], cotangents: Arrays, operands: Sequence[Any]
) -> list[Any]:
    """Returns the cotangents of the operands that are undefined, None for the others.

    function: linear in those that are undefined.
    """
    linear = [i for i, o in enumerate(operands) if ad.is_undefined_primal(o)]

    def of_linear(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        filled = list(operands)
        for i, array in zip(linear, arrays, strict=True):
            filled[i] = array
        return tuple(function(*filled))

    avals: list[Any] = [operands[i].aval for i in linear]
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in avals]
    into = jax.linear_transpose(of_linear, *shapes)(tuple(cotangents))
    found: list[Any] = [None] * len(operands)
    for i, value in zip(linear, into, strict=True):
        found[i] = value
    return found
