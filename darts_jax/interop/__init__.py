"""Weights from and to the PyTorch reference implementation (github.com/quark0/darts).

A *leaf* says where one tensor of the reference's state dict lives: a path in our weights or
batch statistics, and the edge within a stacked array.
"""

from darts_jax.interop.convert import from_reference, to_reference
from darts_jax.interop.leaves import (
    Leaf,
    network_leaves,
    operation_leaves,
    supernet_leaves,
)

__all__ = [
    "Leaf",
    "from_reference",
    "network_leaves",
    "operation_leaves",
    "supernet_leaves",
    "to_reference",
]
