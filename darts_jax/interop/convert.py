"""Weights from and to the PyTorch reference, by a list of leaves.

`from_reference` and `to_reference` walk the same list, so they are inverses.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from darts_jax.errors import UserError
from darts_jax.interop.leaves import Leaf
from darts_jax.models import unpack
from darts_jax.types import BatchStats, Weights

# The last key of a path decides the layout: reference -> ours, ours -> reference.
_OIHW = (lambda w: w.transpose(2, 3, 1, 0), lambda w: w.transpose(3, 2, 0, 1))
_LAYOUTS = {
    "conv": _OIHW,
    "depthwise": (
        lambda w: w.squeeze(1).transpose(1, 2, 0),
        lambda w: w.transpose(2, 0, 1)[:, None],
    ),
    "pointwise": (lambda w: w.squeeze((2, 3)).T, lambda w: w.T[:, :, None, None]),
    "linear": (lambda w: w.T, lambda w: w.T),
}
_SAME = (lambda w: w, lambda w: w)
_STATS = ("mean", "var")  # these are batch statistics, all else weights


def _is_stats(leaf: Leaf) -> bool:
    return leaf.path[-1] in _STATS


def from_reference(
    state_dict: Mapping[str, Any],
    leaves: list[Leaf],
    like: tuple[Weights, BatchStats] | None = None,
) -> tuple[Weights, BatchStats]:
    """Returns (weights, batch_stats) with the values of a reference state dict.

    Args:
        state_dict: {name: array}, as numpy arrays (`{k: v.numpy() for k, v in ...}`).
        leaves: of the same network. Counters `num_batches_tracked` are ignored.
        like: what the model's `init` returns, or its shapes by `jax.eval_shape`; with it
            every tensor's shape is checked, without it only its number of axes.

    Raises:
        UserError: a tensor is missing, left over or of an unexpected shape; or `like` has
            arrays that no leaf stands for.
    """
    if like is not None:
        like = unpack(like)
        _check_complete(like, leaves)
    names = {leaf.reference for leaf in leaves}
    given = {k for k in state_dict if not k.endswith("num_batches_tracked")}
    for missing in sorted(names - given):
        raise UserError(f"the state dict has no {missing!r}; is it another network?")
    for extra in sorted(given - names):
        raise UserError(f"the state dict has {extra!r}, which this network has not")
    stacks: dict[tuple[str, ...], dict[int | None, np.ndarray]] = {}
    for leaf in leaves:
        value = _ours(leaf, np.asarray(state_dict[leaf.reference]), like)
        stacks.setdefault(leaf.path, {})[leaf.edge] = value
    weights: dict = {}
    batch_stats: dict = {}
    for path, edges in stacks.items():
        tree = batch_stats if path[-1] in _STATS else weights
        for key in path[:-1]:
            tree = tree.setdefault(key, {})
        shapes = {value.shape for value in edges.values()}
        if len(shapes) > 1:
            raise UserError(f"{'/'.join(path)}: edges of different shapes {shapes}")
        tree[path[-1]] = (
            edges[None]
            if None in edges
            else np.stack([edges[e] for e in range(len(edges))])
        )
    return weights, batch_stats


def _check_complete(trees: tuple[Weights, BatchStats], leaves: list[Leaf]) -> None:
    """Raises UserError for an array that no leaf stands for: its primitive has no names."""
    named = {leaf.path for leaf in leaves}
    for path, _ in jax.tree.leaves_with_path(trees):
        keys = tuple(key.key for key in path[1:])
        if keys not in named:
            raise UserError(f"no tensor of the reference stands for {'/'.join(keys)}")


def _ours(
    leaf: Leaf, value: np.ndarray, like: tuple[Weights, BatchStats] | None
) -> np.ndarray:
    """Returns a tensor of the reference in our layout; raises UserError for its shape."""
    forward, back = _LAYOUTS.get(leaf.path[-1], _SAME)
    shape = None
    if like is not None:
        array = _at(like[_is_stats(leaf)], leaf.path)
        shape = array.shape if leaf.edge is None else array.shape[1:]
    try:
        ours = forward(value)
    except (IndexError, ValueError):
        ours = None
    if ours is None or shape not in (None, ours.shape):
        wanted = f"{leaf.path[-1]} tensor"
        if shape is not None:
            wanted += f" {back(np.empty(shape, bool)).shape}"
        raise UserError(
            f"{leaf.reference!r} has shape {value.shape}, not of a {wanted}"
        )
    return ours


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    """Returns the array at `path` in nested dictionaries."""
    for key in path:
        tree = tree[key]
    return tree


def to_reference(
    weights: Weights, batch_stats: BatchStats, leaves: list[Leaf]
) -> dict[str, np.ndarray]:
    """Returns the reference's state dict; the inverse of `from_reference`.

    weights and batch_stats may be `Packed`, as in the state of a run.

    Raises:
        UserError: the network has arrays that no leaf stands for.
    """
    weights, batch_stats = unpack((weights, batch_stats))
    _check_complete((weights, batch_stats), leaves)
    state_dict = {}
    for leaf in leaves:
        value = np.asarray(_at(batch_stats if _is_stats(leaf) else weights, leaf.path))
        value = value if leaf.edge is None else value[leaf.edge]
        state_dict[leaf.reference] = _LAYOUTS.get(leaf.path[-1], _SAME)[1](value)
    return state_dict
