"""Sizes are those of the configs they name; floors are those of hand arithmetic."""

from pathlib import Path

import pytest

from darts_jax.benchmark.floors import floats_of_cell, floats_per_image, floor_bytes
from darts_jax.benchmark.sizes import (
    SIZES,
    WORKLOADS,
    Variant,
    images_per_step,
    size_named,
    workloads_of,
)
from darts_jax.commands import configuration
from darts_jax.errors import UserError
from darts_jax.zoo import names

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.mark.parametrize(
    ("size", "name"),
    [
        ("paper", "search_cifar10"),
        ("nb201", "search_nb201"),
        ("quickstart", "search_digits"),
    ],
)
def test_a_size_is_the_search_of_its_config(
    size: str, name: str, tmp_path: Path
) -> None:
    argv = [f"--config={CONFIGS / name}.py", f"--workdir={tmp_path}"]
    config, chosen = configuration.load(argv, "search")[0], SIZES[size]
    assert chosen.space == config.space
    assert chosen.batch == config.batch_size
    assert chosen.order == config.alphas.order
    model = config.model
    assert (chosen.num_cells, chosen.channels) == (model.num_cells, model.channels)
    weights = config.weights
    assert (chosen.nesterov, chosen.weight_decay) == (
        weights.nesterov,
        weights.weight_decay,
    )


@pytest.mark.parametrize(
    ("size", "name"),
    [("paper", "retrain_cifar10"), ("quickstart", "retrain_digits")],
)
def test_a_retraining_is_that_of_its_config(
    size: str, name: str, tmp_path: Path
) -> None:
    argv = [f"--config={CONFIGS / name}.py", f"--workdir={tmp_path}"]
    argv.append("--config.genotype=DARTS_V2")
    config, chosen = configuration.load(argv, "retrain")[0], SIZES[size].retrain
    assert chosen is not None
    assert chosen.batch == config.batch_size
    assert chosen.auxiliary == config.model.auxiliary
    assert (chosen.num_cells, chosen.channels) == (
        config.model.num_cells,
        config.model.channels,
    )


def test_sizes_name_what_there_is() -> None:
    for size in SIZES.values():
        assert size.retrain is None or size.retrain.genotype in names()
    ratios = [workload.ratio for workload in WORKLOADS.values()]
    assert len(set(ratios)) == len(ratios)
    assert all(w.baseline in ("", *WORKLOADS) for w in WORKLOADS.values())


def test_the_floor_of_the_paper_is_13_and_a_half_million_floats() -> None:
    assert floats_per_image(SIZES["paper"], "weights_step") == pytest.approx(
        13.5e6, rel=0.005
    )


def test_the_floats_of_a_cell_by_hand() -> None:
    edges = [
        ("none", 0),
        ("skip_connect", 0),  # stride 2: a convolution, 1 output
        ("sep_conv_3x3", 0),  # 4
        ("dil_conv_5x5", 1),  # 2
        ("max_pool_3x3", 1),  # the pool of state 1, once for two edges
        ("max_pool_3x3", 1),
        ("avg_pool_3x3", 1),
        ("skip_connect", 2),  # of a node: nothing to store
    ]
    floats = floats_of_cell(
        edges, channels=3, pixels=(64, 16), num_inputs=2, num_nodes=2
    )
    rectified = 64 + 64 + 16
    assert floats == 3 * (rectified + (1 + 4 + 2 + 2 + 2) * 16)


def test_the_floor_grows_with_batch_and_passes() -> None:
    size = SIZES["quickstart"]
    once = floor_bytes(size, "weights_step")
    assert floor_bytes(size._replace(batch=128), "weights_step") == 2 * once
    assert floor_bytes(size, "search_step_first_order") == 2 * once
    assert floor_bytes(size, "search_step_unrolled") == 5 * once
    assert 2 * floor_bytes(size, "weights_step", Variant(precision="bfloat16")) == once
    assert floor_bytes(size, "weights_step", Variant(seeds=4)) == 4 * once
    # 5 transfers of 4 bytes.
    assert once == 20 * 64 * floats_per_image(size, "weights_step")


def test_images_of_a_step() -> None:
    paper = SIZES["paper"]
    assert images_per_step(paper, "weights_step") == 64
    assert images_per_step(paper, "search_step_unrolled") == 128
    assert images_per_step(paper, "retrain_step") == 96


def test_every_size_has_floors_of_its_workloads() -> None:
    for size in SIZES.values():
        assert all(floor_bytes(size, name) > 0 for name in workloads_of(size))


def test_workloads_keep_the_order_of_the_registry() -> None:
    size = size_named("tiny")
    assert workloads_of(size) == list(WORKLOADS)
    assert workloads_of(size, ["retrain_step", "weights_step"]) == [
        "weights_step",
        "retrain_step",
    ]


def test_mistakes_name_the_choices() -> None:
    with pytest.raises(UserError, match="did you mean 'paper'.*quickstart"):
        size_named("papr")
    with pytest.raises(UserError, match="did you mean 'weights_step'"):
        workloads_of(size_named("paper"), ["weight_step"])
    with pytest.raises(UserError, match="unknown workload of this size 'retrain_step'"):
        workloads_of(size_named("nb201"), ["retrain_step"])
