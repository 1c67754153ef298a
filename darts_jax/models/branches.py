"""Fused branches in place of modules: their parameters and statistics under the same names.

A cell calls these instead of the modules of `operations.py`, which make the parameters; so
the plain and the fused implementation have the same weights.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from darts_jax.errors import unknown
from darts_jax.models.fused import (
    Branches,
    Operands,
    StageKernels,
    fusible,
    mixed_branches,
    stages_of,
)
from darts_jax.models.layers import Moments
from darts_jax.models.merged import merged_mixed_branches

IMPLEMENTATIONS = ("plain", "fused", "merged")
Mixing = Callable[[Operands, Branches], tuple[jax.Array, Any]]


def mixing(implementation: str, dtype: Any, *, supernet: bool) -> Mixing | None:
    """Returns the function that computes a source state's mixed operations in training.

    Args:
        implementation: one of IMPLEMENTATIONS.
        dtype: of the activations.
        supernet: whether many branches leave a state, or it is a derived network's.

    Returns:
        `(operands, branches) -> (mixed, moments)`, or None: a module for each primitive.

    Raises:
        UserError: there is no such implementation.
    """
    if implementation not in IMPLEMENTATIONS:
        raise unknown("implementation", implementation, IMPLEMENTATIONS)
    if implementation == "merged":
        return merged_mixed_branches
    if implementation == "plain":
        return None
    if fusible(dtype):
        return mixed_branches
    # A derived network's edges have nothing to merge: on a GPU it takes longer for them.
    return merged_mixed_branches if supernet else None


def kernels_of(weights: Mapping[str, Any], stages: int) -> tuple[StageKernels, ...]:
    """Returns the parameters of a chain out of those of its module in operations.py."""
    found = []
    for i in range(stages):
        norm = weights.get(f"norm{i}", {})
        if f"conv{i}" in weights:
            taps, mix = weights[f"conv{i}"]["conv"], None
        else:
            taps = weights[f"depth{i}"]["depthwise"]
            mix = weights[f"point{i}"]["pointwise"]
        found.append(StageKernels(taps, mix, norm.get("scale"), norm.get("bias")))
    return tuple(found)


class BranchMoments(nn.Module):
    """Reports the moments of one branch under the names that its module gives them."""

    @nn.compact
    def __call__(self, moments: Any) -> None:
        for i, pair in enumerate(moments):
            Moments(name=f"norm{i}")(*pair)


def fused_operation(
    cell: nn.Module, name: str, primitive: str, x: jax.Array, stride: int, mix: Mixing
) -> jax.Array:
    """Returns what the module `name` of `cell`, a primitive of BRANCHES, gives in training.

    Args:
        cell: that has the module; called inside its `__call__`.
        name: of the module.
        primitive: in BRANCHES, of one edge.
        x: `[C, B, H, W]`.
        stride: of the edge.
        mix: what computes it.

    Returns:
        `[1, C', B, H', W']`.
    """
    stages = stages_of(primitive, stride)
    kernels = kernels_of(cell.variables["params"][name], len(stages))
    operands = Operands(x, jnp.ones((1, 1), x.dtype), (kernels,))
    y, moments = mix(operands, Branches((stages,)))
    BranchMoments(name=name)(moments[0])
    return y
