"""From edge weights to a genotype: the discretisation of DARTS, section 2.4 (floor 2).

The rule, that of github.com/quark0/darts (`genotype()` in cnn/model_search.py). With
`w` the edge weights after the relaxation, so that a softmax has shared its mass with
`none`:

    strength(j, i) = max over o != none of w[(j, i), o]
    the edges of node i = its two strongest predecessors j, the stronger first
    the primitive of edge (j, i) = argmax over o != none of w[(j, i), o]

Ties go to the lower source and to the earlier primitive; a node with fewer predecessors
than `space.edges_per_node` keeps them all; a primitive that the edge does not allow is
never chosen, whatever its weight. Where `edges_per_node` is None (NAS-Bench-201) every
edge stays with its argmax over all its primitives, `none` among them.

Ranking edges by alphas with the `none` column dropped is a different rule, found in
other implementations: it forgets how much of its mass an edge gives to `none`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from darts_jax.errors import UserError
from darts_jax.genotype import CellGenotype, Genotype
from darts_jax.spaces import Space


def derive(space: Space, edge_weights: Mapping[str, Any]) -> Genotype:
    """Returns the strongest cells: {cell kind: [E, O] after relaxation} -> Genotype.

    Raises UserError for a missing cell kind, a wrong shape or a weight that is nan.
    """
    cells = {}
    for kind in space.cell_kinds:
        weights = _checked(space, kind, edge_weights)
        choosable = np.array(
            [
                [op in space.choices(kind, edge) for op in space.primitives]
                for edge in range(space.num_edges)
            ]
        )
        weights = np.where(choosable, weights, -np.inf)
        nodes = tuple(
            _strongest_edges(space, weights, target)
            for target in range(space.num_inputs, space.num_inputs + space.num_nodes)
        )
        cells[kind] = CellGenotype(nodes, space.concat, space.num_inputs)
    return Genotype(space.skeleton, cells)


def _strongest_edges(
    space: Space, weights: np.ndarray, target: int
) -> tuple[tuple[str, int], ...]:
    """The kept edges into a state, from weights [E, O] with -inf where forbidden."""
    edges = list(space.incoming(target))
    if space.edges_per_node is not None:
        # sorted is stable, so equal edges stay in the order of their sources.
        edges = sorted(edges, key=lambda edge: -weights[edge].max())
    kept = edges[: space.kept(target)]
    return tuple(
        (space.primitives[int(weights[edge].argmax())], space.edges[edge][0])
        for edge in kept
    )


def _checked(space: Space, kind: str, edge_weights: Mapping[str, Any]) -> np.ndarray:
    """The float64 [E, O] weights of one cell kind."""
    if kind not in edge_weights:
        raise UserError(
            f"edge weights of {', '.join(edge_weights) or 'no cell'}; "
            f"space {space.name} needs {', '.join(space.cell_kinds)}"
        )
    weights = np.asarray(edge_weights[kind], dtype=np.float64)
    shape = (space.num_edges, len(space.primitives))
    if weights.shape != shape:
        raise UserError(
            f"edge weights of {kind} have shape {weights.shape}; "
            f"space {space.name} needs {shape}"
        )
    if np.isnan(weights).any():
        edge, op = (int(i) for i in np.argwhere(np.isnan(weights))[0])
        raise UserError(
            f"edge weights of {kind}: edge {edge} has nan for {space.primitives[op]}; "
            "the search has diverged, no genotype can be derived"
        )
    return weights
