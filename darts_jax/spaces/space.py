"""`Space`: what a search may choose from, as data; its checks and its uniform sample.

States `0 .. num_inputs - 1` are the inputs of a cell, the intermediate nodes follow.
Every node may receive every earlier state, so two numbers fix the edges: targets in
order, and for each target its sources in order. That order is the E axis, `primitives`
the O axis.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from darts_jax.errors import UserError, unknown
from darts_jax.genotype import MAX_NODES, PRIMITIVES, SKELETONS, CellGenotype, Genotype

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


def make_space(
    name: str,
    *,
    cell_kinds: tuple[str, ...],
    num_inputs: int,
    num_nodes: int,
    own: tuple[str, ...],
    primitives: Sequence[str] | None,
    edge_primitives: Mapping[str, Sequence[Sequence[str]]] | None,
    edges_per_node: int | None,
    output: str,
    skeleton: str,
) -> Space:
    """Returns a checked Space; the builders' common part.

    own: the space's own primitives, the default and the order of the O axis; other
        known ones come after. The order in which a user lists them has no effect.
    output: "all" concatenates the intermediate nodes, "last" takes the last one.
    Raises UserError for unknown or repeated primitives and wrong counts.
    """
    if isinstance(num_nodes, bool) or not isinstance(num_nodes, int):
        raise UserError(
            f"space {name}: num_nodes must be an integer, not {num_nodes!r}"
        )
    if not 1 <= num_nodes <= MAX_NODES:
        raise UserError(
            f"space {name}: num_nodes must be 1 to {MAX_NODES}, not {num_nodes}"
        )
    if skeleton not in SKELETONS:
        raise unknown("skeleton", skeleton, SKELETONS)
    targets = range(num_inputs, num_inputs + num_nodes)
    edges = tuple((source, target) for target in targets for source in range(target))
    order = own + tuple(op for op in PRIMITIVES if op not in own)
    names = _in_order(name, own if primitives is None else primitives, order)
    per_edge = None
    if edge_primitives is not None:
        known = None if primitives is None else names
        per_edge = _per_edge(
            name, edge_primitives, cell_kinds, len(edges), order, known
        )
        union = {op for lists in per_edge.values() for ops in lists for op in ops}
        names = _in_order(name, sorted(union), order)
    lists = (
        [names]
        if per_edge is None
        else [ops for kind in cell_kinds for ops in per_edge[kind]]
    )
    if edges_per_node is not None and any(set(ops) <= {"none"} for ops in lists):
        raise UserError(
            f"space {name}: every edge needs a primitive other than none to derive"
        )
    return Space(
        name=name,
        cell_kinds=cell_kinds,
        num_inputs=num_inputs,
        num_nodes=num_nodes,
        edges=edges,
        primitives=names,
        edge_primitives=per_edge,
        edges_per_node=edges_per_node,
        concat=tuple(targets) if output == "all" else (targets[-1],),
        skeleton=skeleton,
    )


def check_genotype(genotype: Genotype, space: Space) -> None:
    """Raises UserError unless the genotype is one that `derive` can give for the space.

    Published cells with primitives of their own (NASNet-A) or fewer edges (FairDARTS)
    build networks all the same; only a search and its evaluators need membership.
    """
    if genotype.space != space.skeleton:
        raise UserError(
            f"genotype of space {genotype.space!r}; "
            f"space {space.name} needs {space.skeleton!r}"
        )
    if set(genotype.cells) != set(space.cell_kinds):
        raise UserError(
            f"genotype has the cells {', '.join(genotype.cells)}; "
            f"space {space.name} needs {', '.join(space.cell_kinds)}"
        )
    for kind, cell in genotype.cells.items():
        where = f"{kind} cell in space {space.name}"
        if (cell.num_inputs, len(cell.nodes)) != (space.num_inputs, space.num_nodes):
            raise UserError(
                f"{where}: {cell.num_inputs} inputs and {len(cell.nodes)} nodes; "
                f"needed: {space.num_inputs} and {space.num_nodes}"
            )
        if tuple(sorted(cell.concat)) != space.concat:
            raise UserError(
                f"{where}: concat {list(cell.concat)}; needed: {list(space.concat)}"
            )
        for i, node in enumerate(cell.nodes):
            _check_node(node, space, kind, space.num_inputs + i)


def _check_node(
    node: tuple[tuple[str, int], ...], space: Space, kind: str, target: int
) -> None:
    where = f"{kind} cell in space {space.name}: node {target}"
    needed = space.kept(target)
    if len(node) != needed or len({source for _, source in node}) != needed:
        shown = [source for _, source in node]
        raise UserError(f"{where} has sources {shown}; needed: {needed} different ones")
    incoming = space.incoming(target)
    for op, source in node:
        choices = space.choices(kind, incoming[source])
        if op not in choices:
            raise unknown(f"primitive of edge {source}-{target} ({where})", op, choices)


def random_genotype(space: Space, rng: np.random.Generator) -> Genotype:
    """Returns a uniform draw: per node its sources, per kept edge its primitive."""
    cells = {}
    for kind in space.cell_kinds:
        nodes = []
        for target in range(space.num_inputs, space.num_inputs + space.num_nodes):
            incoming = space.incoming(target)
            # States are contiguous, so the k-th incoming edge starts at source k.
            sources = sorted(
                rng.choice(len(incoming), space.kept(target), replace=False).tolist()
            )
            drawn = [space.choices(kind, incoming[source]) for source in sources]
            names = [ops[int(rng.integers(len(ops)))] for ops in drawn]
            nodes.append(tuple(zip(names, sources, strict=True)))
        cells[kind] = CellGenotype(tuple(nodes), space.concat, space.num_inputs)
    return Genotype(space.skeleton, cells)


def _in_order(
    name: str, chosen: Sequence[str], order: Sequence[str]
) -> tuple[str, ...]:
    """`chosen` in the fixed order; raises UserError for unknown or repeated names."""
    if isinstance(chosen, str) or not isinstance(chosen, Sequence) or not chosen:
        raise UserError(
            f"space {name}: primitives must be a non-empty list, not {chosen!r}"
        )
    for op in chosen:
        if op not in order:
            raise unknown(f"primitive in space {name}", op, order)
    if len(set(chosen)) != len(chosen):
        twice = next(op for op in chosen if list(chosen).count(op) > 1)
        raise UserError(f"space {name}: primitive {twice!r} is listed twice")
    return tuple(sorted(chosen, key=order.index))


def _per_edge(
    name: str,
    edge_primitives: Mapping[str, Sequence[Sequence[str]]],
    cell_kinds: tuple[str, ...],
    num_edges: int,
    order: tuple[str, ...],
    known: tuple[str, ...] | None,
) -> dict[str, tuple[tuple[str, ...], ...]]:
    """The per-edge lists in order; raises UserError for wrong kinds or counts."""
    if not isinstance(edge_primitives, Mapping) or set(edge_primitives) != set(
        cell_kinds
    ):
        raise UserError(
            f"space {name}: edge_primitives must have one entry for each of "
            f"{', '.join(cell_kinds)}"
        )
    result = {}
    for kind in cell_kinds:
        lists = edge_primitives[kind]
        if (
            isinstance(lists, str)
            or not isinstance(lists, Sequence)
            or len(lists) != num_edges
        ):
            count = len(lists) if isinstance(lists, Sequence) else repr(lists)
            raise UserError(
                f"space {name}: edge_primitives of {kind} has {count} lists; "
                f"needed: {num_edges}"
            )
        result[kind] = tuple(_in_order(name, ops, order) for ops in lists)
        for op in (op for ops in result[kind] for op in ops):
            if known is not None and op not in known:
                raise unknown(
                    f"primitive in edge_primitives of space {name}", op, known
                )
    return result
