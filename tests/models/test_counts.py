"""Parameters and multiply-adds, exact to the last one, against recorded numbers.

Nothing is allocated, `jax.eval_shape` gives the shapes; but it takes seconds for 20 cells.
So the quick tests go in two steps: a count by hand gives every recorded number, and the
networks have what the count by hand says at small sizes. The slow tests go directly.
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from darts_jax import zoo
from darts_jax.genotype import Genotype, parse_text
from darts_jax.models import (
    count_multiply_adds,
    count_parameters,
    make_network,
    make_supernet,
)
from darts_jax.spaces import SPACES
from darts_jax.types import Model

CIFAR = {"image_shape": (32, 32, 3), "stem": "cifar"}
IMAGENET = {"image_shape": (224, 224, 3), "stem": "imagenet"}
DATASETS: dict[str, dict[str, Any]] = {
    "cifar10": {**CIFAR, "num_classes": 10, "channels": 36, "num_cells": 20},
    "cifar100": {**CIFAR, "num_classes": 100, "channels": 36, "num_cells": 20},
    "imagenet": {**IMAGENET, "num_classes": 1000, "channels": 48, "num_cells": 14},
}
SLOW = pytest.mark.slow
# Between them these have every primitive, and every kind of cell, of the zoo.
VARIED = {"AmoebaNet_A", "DARTS_V1", "DARTS_V2", "FairDARTS_A", "NASNet_A", "SNAS"}
FIELDS = ("parameters", "parameters_with_auxiliary", "multiply_adds")


def _weights(model: Model) -> Any:
    return jax.eval_shape(model.init, jax.random.key(0))[0]


def _network(name: str, dataset: str) -> Model:
    return make_network(zoo.load(name), auxiliary=True, **DATASETS[dataset])


@pytest.mark.parametrize(
    ("channels", "num_cells", "parameters"),
    [
        (16, 8, 1_930_618),
        (4, 3, 72_854),
        pytest.param(8, 5, 394_210, marks=SLOW),
        pytest.param(16, 20, 4_548_730, marks=SLOW),
    ],
)
def test_the_supernets_parameters(
    channels: int, num_cells: int, parameters: int
) -> None:
    model = make_supernet(
        SPACES["darts"](),
        image_shape=(32, 32, 3),
        num_classes=10,
        channels=channels,
        num_cells=num_cells,
    )
    assert count_parameters(_weights(model)) == parameters


@pytest.mark.parametrize(
    ("name", "dataset", "parameters", "auxiliary"),
    [
        ("DARTS_V1", "cifar10", 3_169_414, 476_426),
        ("DARTS_V2", "cifar10", 3_349_342, 476_426),
        ("DARTS_V2", "cifar100", 3_401_272, 545_636),
        ("DARTS_V1", "imagenet", 4_510_432, 1_260_776),
        ("DARTS_V2", "imagenet", 4_718_752, 1_260_776),
    ],
)
def test_the_published_networks_parameters(
    name: str, dataset: str, parameters: int, auxiliary: int
) -> None:
    weights = _weights(_network(name, dataset))
    assert count_parameters(weights) == parameters
    assert count_parameters(weights, auxiliary=True) == parameters + auxiliary


# --- the count by hand


def _operation(primitive: str, channels: int, stride: int, pixels: int) -> tuple:
    """(parameters, multiply-adds) of a primitive of a derived network, from its layers.

    pixels: of its output, a side.
    """
    kind, _, size = primitive.partition("_conv_")
    norm, area = 2 * channels, pixels**2
    if kind in ("sep", "dil"):
        convolutions = int(size[0]) ** 2 * channels + channels**2
        times = 2 if kind == "sep" else 1
        return times * (convolutions + norm), times * convolutions * area
    if primitive == "skip_connect" and stride == 2:
        return channels**2 + norm, channels**2 * area
    if (
        primitive == "conv_7x1_1x7"
    ):  # the rows are still whole after the first of the two
        once = 7 * channels**2
        return 2 * once + norm, once * area * stride + once * area
    return 0, 0


def _by_hand(
    genotype: Genotype,
    *,
    image_shape: tuple[int, int, int],
    stem: str,
    num_classes: int,
    channels: int,
    num_cells: int,
) -> dict[str, int]:
    """Counts a derived network layer by layer; sizes must halve without a remainder."""
    pixels = image_shape[0]
    if stem == "cifar":
        convolutions = [(3, 3 * channels, pixels)]
        before = last = 3 * channels
    else:
        convolutions = [
            (3, channels // 2, pixels // 2),
            (channels // 2, channels, pixels // 4),
            (channels, channels, pixels // 8),
        ]
        pixels //= 8
        before = last = channels
    parameters = sum(9 * a * b + 2 * b for a, b, _ in convolutions)
    multiply_adds = sum(9 * a * b * size**2 for a, b, size in convolutions)
    for i in range(num_cells):
        reduction = i in (num_cells // 3, 2 * num_cells // 3)
        channels *= 2 if reduction else 1
        # The older input is brought to the size of the other one.
        parameters += (before + last) * channels + 4 * channels
        multiply_adds += (before + last) * channels * pixels**2
        pixels //= 2 if reduction else 1
        cell = genotype.cells["reduce" if reduction else "normal"]
        for node in cell.nodes:
            for primitive, source in node:
                stride = 2 if reduction and source < 2 else 1
                counted = _operation(primitive, channels, stride, pixels)
                parameters += counted[0]
                multiply_adds += counted[1]
        before, last = last, channels * len(cell.concat)
        if i == 2 * num_cells // 3:
            auxiliary = 128 * last + 2 * 128 + 4 * 128 * 768 + 768 * num_classes
            auxiliary += num_classes + (2 * 768 if stem == "cifar" else 0)
    return {
        "parameters": parameters + last * num_classes + num_classes,
        "parameters_with_auxiliary": parameters + (last + 1) * num_classes + auxiliary,
        "multiply_adds": multiply_adds + last * num_classes,
    }


def _counted(model: Model, size: dict[str, Any]) -> dict[str, int]:
    weights = _weights(model)
    return {
        "parameters": count_parameters(weights),
        "parameters_with_auxiliary": count_parameters(weights, auxiliary=True),
        "multiply_adds": count_multiply_adds(model, size["image_shape"]),
    }


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("name", zoo.names())
def test_the_count_by_hand_gives_the_recorded_numbers(name: str, dataset: str) -> None:
    recorded, size = zoo.entry(name)["computed"][dataset], DATASETS[dataset]
    assert (recorded["channels"], recorded["num_cells"]) == (
        size["channels"],
        size["num_cells"],
    )
    assert {k: recorded[k] for k in FIELDS} == _by_hand(zoo.load(name), **size)


@pytest.mark.parametrize(
    "name",
    [
        name if name in VARIED else pytest.param(name, marks=SLOW)
        for name in zoo.names()
    ],
)
def test_a_zoo_entrys_network_has_what_the_count_by_hand_says(name: str) -> None:
    stem, pixels = ("imagenet", 224) if len(name) % 2 else ("cifar", 32)
    size = {
        "image_shape": (pixels, pixels, 3),
        "stem": stem,
        "num_classes": 7,
        "channels": 6,
        "num_cells": 3,
    }
    genotype = zoo.load(name)
    model = make_network(genotype, auxiliary=True, **size)
    assert _counted(model, size) == _by_hand(genotype, **size)


@pytest.mark.slow
@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("name", zoo.names())
def test_a_zoo_entrys_network_has_the_recorded_numbers(name: str, dataset: str) -> None:
    recorded = zoo.entry(name)["computed"][dataset]
    counted = _counted(_network(name, dataset), DATASETS[dataset])
    assert {k: recorded[k] for k in FIELDS} == counted


# --- NAS-Bench-201, and a supernet


def _benchmark() -> list[Any]:
    """The recorded cells; all but the first six are slow."""
    path = Path(__file__).parents[1] / "golden" / "nas_bench_201_counts.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return rows[:6] + [pytest.param(*row, marks=SLOW) for row in rows[6:]]


@pytest.mark.parametrize(("cell", "parameters", "multiply_adds"), _benchmark())
def test_cells_of_nas_bench_201(cell: str, parameters: int, multiply_adds: int) -> None:
    model = make_network(
        parse_text(cell),
        image_shape=(32, 32, 3),
        num_classes=10,
        channels=16,
        num_cells=5,
    )
    assert count_parameters(_weights(model)) == parameters
    # The benchmark also counts the additions of the classifier's ten biases.
    assert count_multiply_adds(model, (32, 32, 3)) == multiply_adds - 10


def test_multiply_adds_of_a_supernet_grow_with_the_image() -> None:
    space = SPACES["tiny"](primitives=("none", "skip_connect", "sep_conv_3x3"))
    edge_weights = {kind: jnp.ones((space.num_edges, 3)) for kind in space.cell_kinds}

    def count(pixels: int) -> int:
        shape = (pixels, pixels, 3)
        model = make_supernet(
            space, image_shape=shape, num_classes=10, num_cells=1, channels=4
        )
        return count_multiply_adds(model, shape, edge_weights)

    # By hand, for one reduction cell of 8 channels with an 8x8 image: the stem; two
    # projections; on 5 edges a separable convolution, of which 4 halve the image, and the
    # strided skips of these 4; the classifier.
    stem, projections = 64 * 27 * 12, 2 * 64 * 12 * 8
    separable = 5 * 2 * 16 * (9 * 8 + 8 * 8)
    skips, classifier = 4 * 16 * 8 * 8, 16 * 10
    assert count(8) == stem + projections + separable + skips + classifier
    assert count(16) - classifier == 4 * (count(8) - classifier)
