"""One-hot edge weights make the supernet compute what the derived network computes."""

from typing import Any

import jax
import numpy as np
import pytest

from darts_jax.genotype import Genotype
from darts_jax.models import make_network, make_supernet
from darts_jax.spaces import SPACES, Space, random_genotype
from darts_jax.types import EdgeWeights

MIXED = {  # edges of two nodes with primitives of their own; source 1 shares sep_conv
    "normal": [
        ["skip_connect", "sep_conv_3x3"],
        ["dil_conv_3x3", "sep_conv_3x3"],
        ["none", "dil_conv_3x3"],
        ["sep_conv_3x3"],
        ["skip_connect", "none"],
    ],
    "reduce": [
        ["sep_conv_3x3"],
        ["skip_connect"],
        ["skip_connect", "dil_conv_3x3"],
        ["skip_connect", "none"],
        ["sep_conv_3x3", "skip_connect"],
    ],
}


def _one_hot(space: Space, genotype: Genotype) -> EdgeWeights:
    """Edge weights that are 1 where the genotype has the edge and its primitive."""
    weights = {}
    for kind, cell in genotype.cells.items():
        rows = np.zeros((space.num_edges, len(space.primitives)))
        for number, node in enumerate(cell.nodes):
            for primitive, source in node:
                e = space.edges.index((source, space.num_inputs + number))
                rows[e, space.primitives.index(primitive)] = 1
        weights[kind] = rows
    return weights


def _selected(space: Space, genotype: Genotype, tree: dict, like: Any) -> Any:
    """The network's arrays out of the supernet's, `like` the network's shapes."""

    def select(path: Any, leaf: Any) -> Any:
        cell, module, *rest = (part.key for part in path)
        if not module.startswith("node"):
            value = tree
            for key in (cell, module, *rest):
                value = value.get(key) if isinstance(value, dict) else None
            return (
                _affine(leaf, rest[-1] if rest else module) if value is None else value
            )
        node, edge, primitive = module.split("_", 2)
        number, row = int(node.removeprefix("node")), int(edge.removeprefix("edge"))
        kind = "reduce" if cell in ("cell1", "cell2") else "normal"
        source = genotype.cells[kind].nodes[number][row][1]
        mask = space.mask(kind)[:, space.primitives.index(primitive)]
        having = [
            e for e, edge in enumerate(space.edges) if edge[0] == source and mask[e]
        ]
        place = having.index(space.edges.index((source, space.num_inputs + number)))
        value = tree[cell][f"source{source}"][primitive]
        for key in rest:
            value = value.get(key) if isinstance(value, dict) else None
        return _affine(leaf, rest[-1]) if value is None else value[place : place + 1]

    return jax.tree.map_with_path(select, like)


def _affine(leaf: Any, name: str) -> np.ndarray:
    """The network's batch norm is affine, the supernet's is not: scale 1, bias 0."""
    assert name in ("scale", "bias")
    return np.full(leaf.shape, float(name == "scale"))


@pytest.mark.parametrize(
    ("space", "train"),
    [
        (SPACES["tiny"](primitives=("none", "skip_connect", "sep_conv_3x3")), False),
        (SPACES["tiny"](edge_primitives=MIXED), True),
    ],
    ids=["every_edge", "edge_primitives"],
)
def test_one_hot_edge_weights_give_the_derived_network(
    space: Space, train: bool, float64: None, rng: np.random.Generator
) -> None:
    # A pool has a batch norm in the supernet only, hence primitives without pools.
    size = {"image_shape": (9, 7, 3), "num_classes": 3, "num_cells": 3, "channels": 4}
    supernet = make_supernet(space, **size)
    weights, stats = jax.tree.map(
        lambda x: rng.uniform(0.3, 1, x.shape) * rng.choice([-1, 1], x.shape),
        jax.eval_shape(supernet.init, jax.random.key(0)),
    )
    stats = jax.tree.map(np.abs, stats)
    images = rng.normal(size=(3, 9, 7, 3))
    genotype = random_genotype(space, np.random.default_rng(3))
    network = make_network(genotype, **size)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    own = [
        _selected(space, genotype, tree, like)
        for tree, like in zip((weights, stats), shapes, strict=True)
    ]
    edge_weights = _one_hot(space, genotype)

    @jax.jit
    def outputs(weights: Any, stats: Any, own: Any, edge_weights: Any) -> Any:
        mixed = supernet.apply(weights, stats, images, edge_weights, train=train)
        return mixed[0], network.apply(*own, images, train=train)[0]

    ours, wanted = outputs(weights, stats, own, edge_weights)
    scale = np.abs(wanted).max()
    assert scale > 1e-3
    np.testing.assert_allclose(ours / scale, wanted / scale, rtol=0, atol=1e-11)
