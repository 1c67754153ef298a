"""Weights and running statistics as one vector each: few large arrays in the state.

A step passes every array of its state in and out, and updates each with loops of its own: of
a small search 671. The model sees the same trees as ever; what is a vector outside is taken
apart where the network begins.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from darts_jax.kernels.packing import native_pack, native_unpack
from darts_jax.models.depthwise import native
from darts_jax.types import BatchStats, Model, Weights


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Packed:
    """The leaves of a pytree, all of one dtype, as one vector `[N]` in the tree's order."""

    values: Any  # an array, or a `jax.ShapeDtypeStruct`
    shapes: tuple[tuple[int, ...], ...] = field(metadata={"static": True})
    structure: Any = field(metadata={"static": True})


def packed(model: Model) -> Model:
    """Returns the model with weights and running statistics that begin as `Packed`.

    On CPUs without our kernels it is returned as it is: with XLA's own slices and
    concatenations a program takes longer to compile there, and is no faster. On GPUs those
    are a few kernels in place of some hundred; there a program needs the compiler flags that
    our commands set, since parts begin anywhere in the vector (commands/xla_flags.py).
    """
    if not (native() or jax.default_backend() == "gpu"):
        return model

    def init(key: jax.Array) -> tuple[Weights, BatchStats]:
        weights, batch_stats = model.init(key)
        return pack(weights), pack(batch_stats)

    return Model(init, model.apply)


def pack(tree: Any) -> Any:
    """Returns the tree as a `Packed`, on the host where it is not traced."""
    leaves, structure = jax.tree.flatten(tree)
    if not leaves:
        return tree
    values: Any
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        values = native_pack(leaves)
    else:
        values = np.concatenate([np.ravel(leaf) for leaf in leaves])
    return Packed(values, tuple(np.shape(leaf) for leaf in leaves), structure)


def unpack(tree: Any) -> Any:
    """Returns the tree with every `Packed` in it as what it was made of.

    In a compiled program or, like `pack`, on the host; of shapes the shapes.
    """
    return jax.tree.map(_unpack, tree, is_leaf=_is_packed)


def pack_as(tree: Any, like: Any) -> Any:
    """Returns the tree with those parts packed that are in `like`, which `unpack` undid."""

    def again(leaf: Any, part: Any) -> Any:
        return pack(part) if _is_packed(leaf) else part

    return jax.tree.map(again, like, tree, is_leaf=_is_packed)


def _is_packed(node: Any) -> bool:
    return isinstance(node, Packed)


def _unpack(node: Any) -> Any:
    if not _is_packed(node):
        return node
    values, shapes = node.values, node.shapes
    leaves: list[Any]
    if isinstance(values, jax.core.Tracer):
        leaves = native_unpack(values, shapes)
    elif isinstance(values, jax.ShapeDtypeStruct):
        leaves = [jax.ShapeDtypeStruct(shape, values.dtype) for shape in shapes]
    else:
        ends = np.cumsum([np.prod(shape, dtype=int) for shape in shapes])
        parts = np.split(np.asarray(values), ends[:-1])
        leaves = [part.reshape(s) for part, s in zip(parts, shapes, strict=True)]
    return jax.tree.unflatten(node.structure, leaves)
