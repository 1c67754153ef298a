"""Spaces: contract over the registry, published facts, masks and mistakes."""

import copy
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from darts_jax import zoo
from darts_jax.errors import UserError
from darts_jax.genotype import PRIMITIVES, CellGenotype, Genotype
from darts_jax.spaces import SPACES, Space, check_genotype, random_genotype

PROPERTY = settings(deadline=None, derandomize=True, max_examples=50)


@pytest.fixture(params=SPACES)
def space(request: pytest.FixtureRequest) -> Space:
    return SPACES[request.param]()


def test_a_registered_space_keeps_the_contract(space: Space) -> None:
    assert SPACES[space.name]() == space
    assert set(space.primitives) <= set(PRIMITIVES)
    assert len(set(space.edges)) == space.num_edges
    assert all(source < target for source, target in space.edges)
    states = set(range(space.num_inputs, space.num_inputs + space.num_nodes))
    assert {target for _, target in space.edges} == states
    assert set(space.concat) <= states
    for kind in space.cell_kinds:
        mask = space.mask(kind)
        assert mask.shape == (space.num_edges, len(space.primitives))
        assert mask.dtype == bool
        for edge, row in enumerate(mask):
            named = [op for op, on in zip(space.primitives, row, strict=True) if on]
            assert tuple(named) == space.allowed(kind, edge)
            assert space.choices(kind, edge)
    used = np.any([space.mask(kind).any(axis=0) for kind in space.cell_kinds], axis=0)
    assert used.all()  # the O axis has no column that no edge uses


def test_a_space_is_a_value(space: Space) -> None:
    assert hash(space) == hash(SPACES[space.name]())
    assert pickle.loads(pickle.dumps(space)) == space
    assert copy.deepcopy(space) == space
    with pytest.raises(AttributeError):
        space.num_nodes = 3  # type: ignore[misc]


@pytest.mark.parametrize("name", SPACES)
@PROPERTY
@given(seed=st.integers(0, 2**32 - 1))
def test_random_genotypes_belong_to_their_space(name: str, seed: int) -> None:
    space = SPACES[name]()
    genotype = random_genotype(space, np.random.default_rng(seed))
    check_genotype(genotype, space)
    assert genotype == random_genotype(space, np.random.default_rng(seed))


def test_random_genotypes_reach_every_choice() -> None:
    space = SPACES["tiny"]()
    rng = np.random.default_rng(0)
    drawn = [random_genotype(space, rng).cells["normal"].nodes for _ in range(300)]
    seen = {edge for nodes in drawn for edge in nodes[1]}
    names = ("max_pool_3x3", "skip_connect", "sep_conv_3x3")
    assert seen == {(op, source) for op in names for source in range(3)}


def test_darts_is_the_published_space() -> None:
    space = SPACES["darts"]()
    assert space.primitives == (
        *("none", "max_pool_3x3", "avg_pool_3x3", "skip_connect"),
        *("sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5"),
    )
    assert space.num_edges == 14
    assert space.edges[:5] == ((0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
    assert space.concat == (2, 3, 4, 5)
    assert space.incoming(3) == (2, 3, 4)


def test_nas_bench_201_is_the_published_space() -> None:
    space = SPACES["nas_bench_201"]()
    assert space.edges == ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
    assert space.primitives == (
        *("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"),
    )
    assert len(space.primitives) ** space.num_edges == 15_625
    assert space.concat == (3,)
    assert space.edges_per_node is None


def test_s1_differs_by_edge_and_cell_kind() -> None:
    space = SPACES["darts_s1"]()
    assert space.allowed("normal", 5) == ("max_pool_3x3", "skip_connect")
    assert space.allowed("reduce", 4) == ("skip_connect", "dil_conv_5x5")
    assert {int(row.sum()) for row in space.mask("normal")} == {2}
    assert (space.mask("normal") != space.mask("reduce")).any()
    assert "none" not in space.primitives


def test_s2_to_s4_are_the_published_lists() -> None:
    names = {name: set(SPACES[name]().primitives) for name in SPACES}
    assert names["darts_s2"] == {"skip_connect", "sep_conv_3x3"}
    assert names["darts_s3"] == {"none", "skip_connect", "sep_conv_3x3"}
    assert names["darts_s4"] == {"noise", "sep_conv_3x3"}


def test_s1_agrees_with_the_reference_data(shared: Path) -> None:
    lists = json.loads((shared / "robust_darts_spaces.json").read_text())["S1"]
    space = SPACES["darts_s1"]()
    for kind in space.cell_kinds:
        for edge, names in enumerate(lists[kind]):
            assert set(space.allowed(kind, edge)) == set(names)


@pytest.mark.parametrize("name", ["darts", "tiny", "darts_s2", "nas_bench_201"])
@pytest.mark.parametrize("num_nodes", [1, 3, 7])
def test_other_node_counts_work(name: str, num_nodes: int) -> None:
    space = SPACES[name](num_nodes=num_nodes)
    assert space.num_edges == sum(space.num_inputs + i for i in range(num_nodes))
    rng = np.random.default_rng(num_nodes)
    check_genotype(random_genotype(space, rng), space)


def test_primitives_keep_the_spaces_order() -> None:
    space = SPACES["darts"](primitives=["sep_conv_7x7", "sep_conv_3x3", "none"])
    assert space.primitives == ("none", "sep_conv_3x3", "sep_conv_7x7")


def test_edge_primitives_fix_the_union_and_the_masks() -> None:
    lists = [["skip_connect"], ["sep_conv_3x3", "none"]]
    space = SPACES["tiny"](
        num_nodes=1, edge_primitives={"normal": lists, "reduce": lists[::-1]}
    )
    assert space.primitives == ("none", "skip_connect", "sep_conv_3x3")
    expected = [[False, True, False], [True, False, True]]
    assert space.mask("normal").tolist() == expected
    assert space.mask("reduce").tolist() == expected[::-1]


SKIP = ["skip_connect"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"primitives": ["sep_conv_3"]}, "unknown primitive.*did you mean 'sep_conv"),
        ({"primitives": ["skip_connect"] * 2}, "'skip_connect' is listed twice"),
        ({"primitives": []}, "non-empty list"),
        ({"primitives": "skip_connect"}, "non-empty list"),
        ({"primitives": [["none"]]}, "unknown primitive"),
        ({"primitives": ["none"]}, "other than none"),
        ({"num_nodes": 0}, "1 to 64, not 0"),
        ({"num_nodes": 65}, "1 to 64, not 65"),
        ({"num_nodes": 2.0}, "an integer, not 2.0"),
        ({"num_nodes": True}, "an integer, not True"),
        ({"edge_primitives": {"normal": [SKIP] * 5}}, "normal, reduce"),
        ({"edge_primitives": [SKIP] * 5}, "normal, reduce"),
        (
            {"edge_primitives": {"normal": [SKIP] * 4, "reduce": [SKIP] * 5}},
            "normal has 4 lists; needed: 5",
        ),
        (
            {"edge_primitives": {"normal": [["none"]] * 5, "reduce": [SKIP] * 5}},
            "other than none",
        ),
        (
            {
                "primitives": ["none", "skip_connect"],
                "edge_primitives": {
                    "normal": [["sep_conv_3x3"]] * 5,
                    "reduce": [SKIP] * 5,
                },
            },
            "unknown primitive in edge_primitives.*'sep_conv_3x3'",
        ),
    ],
)
def test_bad_options_are_refused_in_one_line(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        SPACES["tiny"](**options)
    assert "\n" not in str(caught.value)


def test_s1_is_tied_to_four_nodes() -> None:
    with pytest.raises(UserError, match="14 lists; needed: 9"):
        SPACES["darts_s1"](num_nodes=3)


def test_an_unknown_cell_kind_is_named() -> None:
    with pytest.raises(UserError, match="'reduction'.*did you mean 'reduce'"):
        SPACES["darts"]().mask("reduction")


def edited(nodes: tuple, concat: tuple[int, ...] = (2, 3)) -> Genotype:
    """A genotype of tiny whose normal cell is replaced."""
    good = random_genotype(SPACES["tiny"](), np.random.default_rng(0))
    return Genotype("darts", {**good.cells, "normal": CellGenotype(nodes, concat)})


FIRST = (("skip_connect", 0), ("skip_connect", 1))


@pytest.mark.parametrize(
    ("nodes", "concat", "message"),
    [
        ((FIRST,), (2,), "1 nodes; needed: 2 and 2"),
        ((FIRST, FIRST), (3,), r"concat \[3\]; needed: \[2, 3\]"),
        ((FIRST, FIRST[:1]), (2, 3), r"node 3 has sources \[0\]; needed: 2"),
        ((FIRST, FIRST[:1] * 2), (2, 3), r"sources \[0, 0\]; needed: 2 different"),
        ((FIRST, (*FIRST, ("skip_connect", 2))), (2, 3), r"sources \[0, 1, 2\]"),
        ((FIRST, (FIRST[0], ("dil_conv_3x3", 1))), (2, 3), "'dil_conv_3x3'.*choices"),
        ((FIRST, (FIRST[0], ("none", 1))), (2, 3), "'none'.*choices"),
    ],
)
def test_genotypes_outside_the_space_are_refused(
    nodes: tuple, concat: tuple[int, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        check_genotype(edited(nodes, concat), SPACES["tiny"]())
    assert "\n" not in str(caught.value)


def test_the_edited_genotype_is_otherwise_good() -> None:
    check_genotype(edited((FIRST, FIRST)), SPACES["tiny"]())


def test_family_and_cell_kinds_are_checked() -> None:
    tiny, bench = SPACES["tiny"](), SPACES["nas_bench_201"]()
    genotype = random_genotype(tiny, np.random.default_rng(0))
    with pytest.raises(UserError, match="'darts'; space nas_bench_201 needs"):
        check_genotype(genotype, bench)
    normal = Genotype("darts", {"normal": genotype.cells["normal"]})
    with pytest.raises(UserError, match="cells normal; .* needs normal, reduce"):
        check_genotype(normal, tiny)
    extra = Genotype("darts", {**genotype.cells, "stem": genotype.cells["normal"]})
    with pytest.raises(UserError, match="normal, reduce, stem"):
        check_genotype(extra, tiny)


@pytest.mark.parametrize("name", ["DARTS_V1", "DARTS_V2", "P_DARTS", "DrNAS_CIFAR10"])
def test_published_cells_belong_to_darts(name: str) -> None:
    check_genotype(zoo.load(name), SPACES["darts"]())


@pytest.mark.parametrize("name", ["NASNet_A", "AmoebaNet_A", "FairDARTS_A"])
def test_cells_from_elsewhere_do_not(name: str) -> None:
    with pytest.raises(UserError, match="space darts"):
        check_genotype(zoo.load(name), SPACES["darts"]())


def test_the_s1_cell_belongs_to_s1_only_where_it_should() -> None:
    space = SPACES["darts_s1"]()
    genotype = random_genotype(space, np.random.default_rng(0))
    check_genotype(genotype, SPACES["darts"]())
    with pytest.raises(UserError, match="darts_s1"):
        check_genotype(zoo.load("DARTS_V2"), space)
