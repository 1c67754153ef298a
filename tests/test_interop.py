"""Weights from and to the reference: inverses, complete, and refusing what does not fit."""

from typing import Any

import jax
import numpy as np
import pytest

from darts_jax import interop, zoo
from darts_jax.errors import UserError
from darts_jax.genotype import parse_text
from darts_jax.interop import from_reference, to_reference
from darts_jax.models import make_network, make_supernet
from darts_jax.models.packing import pack
from darts_jax.spaces import SPACES
from darts_jax.types import Model

SIZE = {"num_cells": 3, "channels": 4}
Small = tuple[Any, list, dict[str, np.ndarray]]


def _supernet(space: str, stem_affine: bool = True) -> tuple[Model, list]:
    built = SPACES[space]()
    model = make_supernet(
        built,
        image_shape=(16, 16, 3),
        num_classes=10,
        stem_affine=stem_affine,
        **SIZE,
    )
    return model, interop.supernet_leaves(built, stem_affine=stem_affine, **SIZE)


def _network(name: str, stem: str, auxiliary: bool) -> tuple[Model, list]:
    options = {"stem": stem, "auxiliary": auxiliary, **SIZE}
    pixels = 224 if stem == "imagenet" else 32
    genotype = zoo.load(name)
    model = make_network(
        genotype, image_shape=(pixels, pixels, 3), num_classes=10, **options
    )
    return model, interop.network_leaves(genotype, **options)


NETWORKS = {
    "darts": lambda: _supernet("darts"),
    "paper": lambda: _supernet("darts", stem_affine=False),
    "per_edge": lambda: _supernet("darts_s1"),
    "cifar": lambda: _network("DARTS_V2", "cifar", False),
    "cifar_auxiliary": lambda: _network("DARTS_V2", "cifar", True),
    "imagenet": lambda: _network("DARTS_V1", "imagenet", False),
    "imagenet_auxiliary": lambda: _network("DARTS_V1", "imagenet", True),
    "nasnet": lambda: _network("NASNet_A", "cifar", True),  # a source twice a node
    "amoebanet": lambda: _network("AmoebaNet_A", "imagenet", True),  # 7x1
    "fairdarts": lambda: _network("FairDARTS_A", "cifar", False),  # nodes of one edge
}


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest) -> tuple[Any, list]:
    """(shapes of weights and batch statistics, leaves)."""
    model, leaves = NETWORKS[request.param]()
    return jax.eval_shape(model.init, jax.random.key(0)), leaves


@pytest.fixture(scope="module")
def whole() -> Small:
    """(shapes, leaves, state dict) of one network."""
    model, leaves = _network("DARTS_V2", "cifar", True)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return shapes, leaves, to_reference(*_random(shapes), leaves)


@pytest.fixture
def small(whole: Small) -> Small:
    """The same, to break."""
    shapes, leaves, state_dict = whole
    return shapes, leaves, dict(state_dict)


def _random(shapes: Any) -> Any:
    """Different values everywhere, so that an exchange of two tensors shows."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)


def test_the_leaves_are_the_whole_network_and_the_round_trip_exact(
    network: tuple[Any, list],
) -> None:
    shapes, leaves = network
    variables = _random(shapes)
    state_dict = to_reference(*variables, leaves)
    back = from_reference(state_dict, leaves, like=shapes)
    assert jax.tree.structure(back) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, back, variables)
    again = to_reference(*back, leaves)
    assert list(again) == list(state_dict)
    for name, value in state_dict.items():
        np.testing.assert_array_equal(again[name], value)
        assert value.dtype == np.float32


def test_every_tensor_has_one_name_and_one_place(network: tuple[Any, list]) -> None:
    _, leaves = network
    names = [leaf.reference for leaf in leaves]
    assert len(set(names)) == len(names)
    places = [(leaf.path, leaf.edge) for leaf in leaves]
    assert len(set(places)) == len(places)


def test_names_and_layouts_are_the_references(
    small: Small,
) -> None:
    """A sample, known from the reference's model (C = 4, three cells)."""
    _, _, state_dict = small
    wanted = {
        "stem.0.weight": (12, 3, 3, 3),
        "cells.0.preprocess0.op.1.weight": (4, 12, 1, 1),
        "cells.0._ops.0.op.1.weight": (4, 1, 3, 3),  # depthwise
        "cells.0._ops.0.op.2.weight": (4, 4, 1, 1),
        "cells.0._ops.7.op.1.weight": (4, 1, 3, 3),  # dil_conv_3x3
        "cells.2.preprocess0.conv_1.weight": (8, 16, 1, 1),  # FactorizedReduce
        "cells.2.preprocess0.bn.running_var": (16,),
        "auxiliary_head.features.5.weight": (768, 128, 2, 2),
        "auxiliary_head.classifier.weight": (10, 768),
        "classifier.weight": (10, 64),
        "classifier.bias": (10,),
    }
    assert {name: state_dict[name].shape for name in wanted} == wanted


def test_each_tensor_lands_in_its_layout(
    small: Small,
) -> None:
    _, leaves, state_dict = small
    weights, _ = from_reference(state_dict, leaves)
    depthwise = weights["cell0"]["node0_edge0_sep_conv_3x3"]["depth0"]["depthwise"]
    given = state_dict["cells.0._ops.0.op.1.weight"]
    assert depthwise[0, 0, 2, 3] == given[3, 0, 0, 2]
    pointwise = weights["cell0"]["node0_edge0_sep_conv_3x3"]["point0"]["pointwise"]
    assert pointwise[0, 1, 3] == state_dict["cells.0._ops.0.op.2.weight"][3, 1, 0, 0]
    conv = weights["stem_conv0"]["conv"]
    assert conv[0, 0, 2, 1, 7] == state_dict["stem.0.weight"][7, 1, 0, 2]
    linear = weights["classifier"]["linear"]
    assert linear[5, 2] == state_dict["classifier.weight"][2, 5]


def test_counters_are_ignored(
    small: Small,
) -> None:
    shapes, leaves, state_dict = small
    without = from_reference(state_dict, leaves, like=shapes)
    state_dict["stem.1.num_batches_tracked"] = np.array(7)
    counted = from_reference(state_dict, leaves, like=shapes)
    jax.tree.map(np.testing.assert_array_equal, counted, without)


def test_a_missing_tensor_is_named(
    small: Small,
) -> None:
    shapes, leaves, state_dict = small
    del state_dict["stem.1.running_mean"]
    with pytest.raises(UserError, match=r"no 'stem\.1\.running_mean'"):
        from_reference(state_dict, leaves, like=shapes)


def test_a_tensor_too_many_is_named(
    small: Small,
) -> None:
    shapes, leaves, state_dict = small
    state_dict["cells.9.bias"] = np.zeros(3)
    with pytest.raises(
        UserError, match=r"'cells\.9\.bias', which this network has not"
    ):
        from_reference(state_dict, leaves, like=shapes)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("stem.0.weight", (12, 3, 3)),  # an axis too few
        ("stem.0.weight", (16, 3, 3, 3)),  # another number of channels
        ("cells.0._ops.0.op.1.weight", (4, 1, 5, 5)),  # another kernel size
        ("cells.0._ops.0.op.1.weight", (4, 2, 3, 3)),  # not depthwise
        ("cells.0._ops.0.op.2.weight", (4, 4, 3, 3)),  # not 1x1
        ("classifier.weight", (100, 64)),  # another number of classes
        ("classifier.bias", (100,)),
        ("stem.1.running_mean", (12, 1)),
        ("stem.1.running_mean", ()),
    ],
)
def test_a_tensor_of_another_shape_is_named(
    small: Small, name: str, shape: tuple[int, ...]
) -> None:
    shapes, leaves, state_dict = small
    right = state_dict[name].shape
    state_dict[name] = np.zeros(shape)
    with pytest.raises(UserError) as caught:
        from_reference(state_dict, leaves, like=shapes)
    message = str(caught.value)
    assert repr(name) in message and "\n" not in message
    assert str(shape) in message and str(right) in message


def test_edges_of_different_shapes_are_refused_without_a_model() -> None:
    model, leaves = _supernet("darts")
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    state_dict = to_reference(*_random(shapes), leaves)
    name = "cells.0._ops.0._ops.4.op.2.weight"
    assert state_dict[name].shape == (4, 4, 1, 1)
    state_dict[name] = np.zeros((5, 4, 1, 1))
    with pytest.raises(UserError, match="edges of different shapes"):
        from_reference(state_dict, leaves)


def test_another_network_is_refused() -> None:
    (model, leaves), (_, others) = NETWORKS["cifar"](), NETWORKS["imagenet"]()
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    state_dict = to_reference(*_random(shapes), leaves)
    with pytest.raises(UserError, match="is it another network"):
        from_reference(state_dict, others)


def test_packed_states_are_written_as_trees(whole: Small) -> None:
    shapes, leaves, state_dict = whole
    written = to_reference(*map(pack, _random(shapes)), leaves)
    jax.tree.map(np.testing.assert_array_equal, written, state_dict)


def test_a_primitive_that_the_reference_has_not_is_refused() -> None:
    space = SPACES["darts"](num_nodes=1, primitives=("nor_conv_3x3", "skip_connect"))
    size = {"num_cells": 1, "channels": 4}
    model = make_supernet(space, image_shape=(8, 8, 3), num_classes=10, **size)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    leaves = interop.supernet_leaves(space, **size)
    with pytest.raises(UserError, match=r"no tensor .* cell0/source0/nor_conv_3x3"):
        to_reference(*_random(shapes), leaves)
    with pytest.raises(UserError, match=r"no tensor .* cell0/source0/nor_conv_3x3"):
        from_reference({}, leaves, like=shapes)


def test_a_genotype_of_another_family_is_refused() -> None:
    genotype = parse_text("|nor_conv_1x1~0|+|none~0|none~1|+|none~0|none~1|none~2|")
    with pytest.raises(UserError, match="a genotype of nas_bench_201"):
        interop.network_leaves(genotype, num_cells=1, channels=4)
