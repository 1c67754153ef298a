"""Building a `Space` from what a user asks for, checked: the builders' common part."""

from collections.abc import Mapping, Sequence

from darts_jax.errors import UserError, unknown
from darts_jax.genotype import MAX_NODES, PRIMITIVES, SKELETONS
from darts_jax.notation import shown
from darts_jax.spaces.space import Space


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
        if isinstance(lists, str) or not isinstance(lists, Sequence):
            raise UserError(
                f"space {name}: edge_primitives of {kind} must be a list of "
                f"{num_edges} lists, not {shown(lists)}"
            )
        if len(lists) != num_edges:
            raise UserError(
                f"space {name}: edge_primitives of {kind} has {len(lists)} lists; "
                f"needed: {num_edges}"
            )
        result[kind] = tuple(_in_order(name, ops, order) for ops in lists)
        for op in (op for ops in result[kind] for op in ops):
            if known is not None and op not in known:
                raise unknown(
                    f"primitive in edge_primitives of space {name}", op, known
                )
    return result
