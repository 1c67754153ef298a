"""`Space`: what a search may choose from, as data.

States `0 .. num_inputs - 1` are the inputs of a cell, the intermediate nodes follow.
Every node may receive every earlier state, so two numbers fix the edges: targets in
order, and for each target its sources in order. That order is the E axis, `primitives`
the O axis.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from darts_jax.errors import unknown

EdgePrimitives = Mapping[str, tuple[tuple[str, ...], ...]]


@dataclass(frozen=True)
class Space:
    """A cell-based search space; frozen, hashable, built by the functions in `SPACES`.

    edges: (source, target) in order, the E axis.
    primitives: the union over edges, in one fixed order, the O axis.
    edge_primitives: None where every edge has every primitive, else {kind: the names
        of each edge}.
    edges_per_node: how many edges a derived node keeps; None where every edge is kept
        with its best primitive, `none` among them (NAS-Bench-201).
    concat: the states that are concatenated to the cell's output.
    skeleton: the family of networks that the cells make, "darts" or "nas_bench_201".
    """

    name: str
    cell_kinds: tuple[str, ...]
    num_inputs: int
    num_nodes: int
    edges: tuple[tuple[int, int], ...]
    primitives: tuple[str, ...]
    edge_primitives: EdgePrimitives | None
    edges_per_node: int | None
    concat: tuple[int, ...]
    skeleton: str

    def __post_init__(self) -> None:
        if self.edge_primitives is not None:
            frozen = MappingProxyType(dict(self.edge_primitives))
            object.__setattr__(self, "edge_primitives", frozen)

    def _values(self) -> tuple[Any, ...]:
        per_edge = self.edge_primitives
        return (
            *(self.name, self.cell_kinds, self.num_inputs, self.num_nodes, self.edges),
            *(self.primitives, None if per_edge is None else dict(per_edge)),
            *(self.edges_per_node, self.concat, self.skeleton),
        )

    def __hash__(self) -> int:
        return hash((self.name, self.edges, self.primitives))

    def __reduce__(self) -> tuple[Any, ...]:
        return (Space, self._values())  # a mapping proxy does not pickle

    @property
    def num_edges(self) -> int:
        """E, the number of edges of one cell."""
        return len(self.edges)

    def allowed(self, kind: str, edge: int) -> tuple[str, ...]:
        """Returns the primitives that an edge of cell `kind` may have, in O order."""
        if kind not in self.cell_kinds:
            raise unknown(f"cell kind of space {self.name}", kind, self.cell_kinds)
        return (
            self.primitives
            if self.edge_primitives is None
            else self.edge_primitives[kind][edge]
        )

    def incoming(self, target: int) -> tuple[int, ...]:
        """Returns the numbers of the edges into state `target`, by rising source."""
        return tuple(e for e, (_, end) in enumerate(self.edges) if end == target)

    def choices(self, kind: str, edge: int) -> tuple[str, ...]:
        """Returns what a derived edge may have: no `none` unless all edges are kept."""
        ops = self.allowed(kind, edge)
        return (
            ops
            if self.edges_per_node is None
            else tuple(op for op in ops if op != "none")
        )

    def kept(self, target: int) -> int:
        """Returns how many edges into state `target` a derived cell keeps."""
        return (
            target if self.edges_per_node is None else min(self.edges_per_node, target)
        )

    def mask(self, kind: str) -> np.ndarray:
        """Returns bool [E, O]: whether the edge may have the primitive."""
        allowed = [self.allowed(kind, edge) for edge in range(self.num_edges)]
        return np.array(
            [[op in ops for op in self.primitives] for ops in allowed], dtype=bool
        )
