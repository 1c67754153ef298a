"""The derivation rule: against the reference's own output, a rival rule and properties."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from darts_jax.derive import derive
from darts_jax.errors import UserError
from darts_jax.genotype import Genotype, parse_text
from darts_jax.spaces import SPACES, Space, check_genotype

PROPERTY = settings(deadline=None, derandomize=True, max_examples=50)


def softmax(alphas: np.ndarray) -> np.ndarray:
    exps = np.exp(alphas - alphas.max(axis=-1, keepdims=True))
    return exps / exps.sum(axis=-1, keepdims=True)


def weights_for(space: Space, seed: int) -> dict[str, np.ndarray]:
    """Softmax weights of grid alphas, so that ties occur; 0 where the space forbids."""
    rng = np.random.default_rng(seed)
    shape = (space.num_edges, len(space.primitives))
    return {
        kind: softmax(rng.integers(-8, 8, shape) / 8) * space.mask(kind)
        for kind in space.cell_kinds
    }


def test_the_reference_derives_the_same_genotype(repository: Path) -> None:
    text = (repository / "tests/golden/derive_reference.json").read_text()
    golden = json.loads(text)
    alphas = {kind: np.array(rows) for kind, rows in golden["alphas"].items()}
    derived = derive(SPACES["darts"](), {k: softmax(a) for k, a in alphas.items()})
    for kind, cell in derived.cells.items():
        # A flat list: also the order of the two edges of a node is the reference's.
        flat = [list(edge) for node in cell.nodes for edge in node]
        assert flat == golden["genotype"][kind]
        assert list(cell.concat) == golden["genotype"][f"{kind}_concat"]


def test_none_takes_its_share_before_edges_are_ranked() -> None:
    """Edge 0 has the larger raw alpha but is nearly sure of `none`; edges 1, 2 win."""
    space = SPACES["tiny"](primitives=["none", "skip_connect", "sep_conv_3x3"])
    alphas = np.zeros((5, 3))
    alphas[2] = [9.0, 0.0, 4.0]  # state 0 -> node 3
    alphas[3] = [0.0, 3.0, 0.0]  # state 1 -> node 3
    alphas[4] = [0.0, 0.0, 2.0]  # state 2 -> node 3
    by_raw_alphas = sorted(range(3), key=lambda j: -alphas[2 + j, 1:].max())[:2]
    assert by_raw_alphas == [0, 1]
    cell = derive(space, dict.fromkeys(space.cell_kinds, softmax(alphas))).cells
    assert cell["normal"].nodes[1] == (("skip_connect", 1), ("sep_conv_3x3", 2))


def test_edges_stand_in_order_of_strength() -> None:
    space = SPACES["tiny"](num_nodes=1)
    weights = np.array([[0.7, 0.1, 0.1, 0.1], [0.1, 0.2, 0.6, 0.1]])
    cells = derive(space, {"normal": weights, "reduce": weights[::-1]}).cells
    assert cells["normal"].nodes == ((("skip_connect", 1), ("max_pool_3x3", 0)),)
    assert cells["reduce"].nodes == ((("skip_connect", 0), ("max_pool_3x3", 1)),)


def test_ties_go_to_the_lower_source_and_the_earlier_primitive() -> None:
    space = SPACES["darts"]()
    uniform = np.full((14, 8), 1 / 8)
    cell = derive(space, {"normal": uniform, "reduce": uniform}).cells["normal"]
    assert cell.nodes == ((("max_pool_3x3", 0), ("max_pool_3x3", 1)),) * 4


def test_nas_bench_201_keeps_every_edge_and_none() -> None:
    space = SPACES["nas_bench_201"]()
    weights = np.eye(5)[[3, 0, 1, 4, 2, 0]]
    assert derive(space, {"cell": weights}).to_text() == (
        "|nor_conv_3x3~0|+|none~0|skip_connect~1|"
        "+|avg_pool_3x3~0|nor_conv_1x1~1|none~2|"
    )


def test_a_forbidden_primitive_is_never_chosen() -> None:
    space = SPACES["darts_s1"]()
    # The forbidden ones get all the mass, as an unmasked relaxation would give.
    weights = {kind: 1.0 - space.mask(kind) for kind in space.cell_kinds}
    check_genotype(derive(space, weights), space)


def test_fewer_predecessors_than_edges_are_all_kept() -> None:
    # No builder gives one input with two edges a node; a Space is data and may.
    space = Space(
        name="chain",
        cell_kinds=("normal",),
        num_inputs=1,
        num_nodes=2,
        edges=((0, 1), (0, 2), (1, 2)),
        primitives=("none", "skip_connect"),
        edge_primitives=None,
        edges_per_node=2,
        concat=(1, 2),
        skeleton="darts",
    )
    cell = derive(space, {"normal": np.full((3, 2), 0.5)}).cells["normal"]
    assert [len(node) for node in cell.nodes] == [1, 2]


@pytest.mark.parametrize("name", SPACES)
@PROPERTY
@given(seed=st.integers(0, 2**32 - 1))
def test_derived_genotypes_are_valid_and_round_trip(name: str, seed: int) -> None:
    space = SPACES[name]()
    genotype = derive(space, weights_for(space, seed))
    check_genotype(genotype, space)
    assert Genotype.from_json(json.loads(json.dumps(genotype.to_json()))) == genotype
    assert derive(space, weights_for(space, seed)) == genotype
    text = genotype.to_text()
    assert parse_text(text).to_text() == text
    assert parse_text(text) == genotype


@PROPERTY
@given(
    seed=st.integers(0, 2**32 - 1), edge=st.integers(0, 13), shift=st.integers(-9, 9)
)
def test_a_constant_added_to_an_edge_changes_nothing(
    seed: int, edge: int, shift: int
) -> None:
    space = SPACES["darts"]()
    alphas = np.random.default_rng(seed).integers(-8, 8, (14, 8)) / 8
    moved = alphas.copy()
    moved[edge] += shift  # exact in binary, so that the softmax is bit-equal
    before, after = (
        derive(space, {"normal": softmax(a), "reduce": softmax(a)})
        for a in (alphas, moved)
    )
    assert before == after


@PROPERTY
@given(seed=st.integers(0, 2**32 - 1), num_nodes=st.integers(1, 6))
def test_each_kept_edge_is_as_strong_as_any_dropped_one(
    seed: int, num_nodes: int
) -> None:
    space = SPACES["darts"](num_nodes=num_nodes)
    weights = weights_for(space, seed)
    strength = {k: w[:, 1:].max(axis=1) for k, w in weights.items()}
    for kind, cell in derive(space, weights).cells.items():
        for target, node in enumerate(cell.nodes, start=2):
            by_source = strength[kind][list(space.incoming(target))]
            kept = [by_source[source] for _, source in node]
            assert kept == sorted(by_source, reverse=True)[:2]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            {"normal": np.ones((5, 4))},
            "edge weights of normal; .* needs normal, reduce",
        ),
        ({"normal": np.ones((4, 5)), "reduce": np.ones((5, 4))}, r"\(4, 5\).*\(5, 4\)"),
        ({"normal": np.full((5, 4), np.nan)}, "edge 0 has nan for none; .* diverged"),
    ],
)
def test_bad_weights_are_refused_in_one_line(weights: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        derive(SPACES["tiny"](), weights)
    assert "\n" not in str(caught.value)
