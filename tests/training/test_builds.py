"""What a search and a retraining are built of: the config's fields arrive where they act."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from darts_jax import zoo
from darts_jax.commands.configuration import load_file, resolve_preset
from darts_jax.data import Dataset
from darts_jax.training import loop, retrain, search, setup
from darts_jax.types import Batch

# Neither is the default of its function nor what a config has unless told so.
COMPUTATION = {
    "implementation": "plain",
    "precision": "bfloat16",
    "remat": True,
    "norm_groups": 2,
}


class BuiltError(Exception):
    """Ends a build once a spy has seen what it is for."""


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`spy(module, name)` replaces a function; returns {name of an argument: value}."""

    def replace(module: Any, name: str, stop: bool = False) -> dict[str, Any]:
        original, given = getattr(module, name), {}

        def called(*args: Any, **options: Any) -> Any:
            given.update(options)
            given["arguments"] = args
            if stop:
                raise BuiltError
            return original(*args, **options)

        monkeypatch.setattr(module, name, called)
        return given

    return replace


def _config(repository: Path, name: str) -> ConfigDict:
    loaded = load_file(repository / "configs" / f"{name}_digits.py", "tiny")
    loaded.update(precision="bfloat16", accumulate=2)
    loaded.model.update(implementation="plain", remat=True, num_cells=1, channels=2)
    loaded.model.update(stem_multiplier=2)
    loaded.batch_norm.groups = 2
    return loaded


@pytest.fixture
def config(repository: Path) -> ConfigDict:
    """Of a search; `alphas` and `batch_norm` still open to a preset."""
    loaded = _config(repository, "search")
    loaded.model.num_nodes = 1
    return loaded


def _dataset(number: int = 32) -> Dataset:
    """Black images labelled 1, then white ones labelled 2."""
    label = np.repeat([1, 2], number // 2).astype(np.int32)
    images = np.zeros((number, 8, 8, 1), np.uint8) + np.uint8(255) * (
        label[:, None, None, None] == 2
    ).astype(np.uint8)
    return Dataset(
        name="halves",
        train_images=images,
        train_labels=label,
        test_images=images,
        test_labels=label,
        num_classes=3,
        class_names=("0", "1", "2"),
        mean=(0.5,),
        std=(0.5,),
    )


def _supernet_is_built(spy: Any, config: ConfigDict) -> dict[str, Any]:
    given = spy(search, "make_supernet", stop=True)
    with pytest.raises(BuiltError):
        search.build(config, _dataset())
    return given


@pytest.mark.parametrize(
    ("preset", "evaluation", "stem_affine"),
    [("code", "running", True), ("paper", "batch", False)],
)
def test_supernet(
    preset: str, evaluation: str, stem_affine: bool, spy: Any, config: ConfigDict
) -> None:
    config.preset = preset
    resolve_preset(config)
    given = _supernet_is_built(spy, config)
    assert given["evaluation"] == evaluation
    assert given["stem_affine"] is stem_affine
    assert {name: given[name] for name in COMPUTATION} == COMPUTATION
    size = {"num_cells": 1, "channels": 2, "stem_multiplier": 2, "stem": "cifar"}
    assert {name: given[name] for name in size} == size
    assert given["image_shape"] == (8, 8, 1) and given["num_classes"] == 3


def test_nas_bench_201_is_built_as_its_authors_do(repository: Path, spy: Any) -> None:
    config = load_file(repository / "configs" / "search_nb201.py", "tiny")
    resolve_preset(config)
    given = _supernet_is_built(spy, config)
    assert (given["evaluation"], given["stem_affine"]) == ("batch_in_cells", True)


def test_network(repository: Path, spy: Any) -> None:
    config = _config(repository, "retrain")
    resolve_preset(config)
    given = spy(retrain, "make_network", stop=True)
    with pytest.raises(BuiltError):
        retrain.build(config, zoo.load("DARTS_V2"), _dataset())
    assert {name: given[name] for name in COMPUTATION} == COMPUTATION
    size = {"num_cells": 1, "channels": 2, "stem_multiplier": 2, "auxiliary": False}
    assert {name: given[name] for name in size} == size


def test_retrain_step(repository: Path, spy: Any) -> None:
    config = _config(repository, "retrain")
    resolve_preset(config)
    task = retrain.build(config, zoo.load("DARTS_V2"), _dataset())
    given, compiled = (
        spy(retrain, "make_retrain_step"),
        spy(retrain, "compile_steps"),
    )
    retrain.plan_of(task)
    assert given["parts"] == 2
    assert given["arguments"] == (task.model, task.optimizer)
    assert compiled["remat"] is True


@pytest.mark.parametrize("order", ["alphas_first", "weights_first"])
def test_search_step(order: str, spy: Any, config: ConfigDict) -> None:
    config.alphas.order = order
    config.hypergradient = "finite_difference"
    config.finite_difference.radius = 0.07
    config.weights.clip = 0.1
    resolve_preset(config)
    clips = spy(setup, "weight_optimizer")
    task = search.build(config, _dataset())
    given, compiled = spy(search, "make_search_step"), spy(search, "compile_steps")
    search.plan_of(task)
    assert (given["order"], given["parts"]) == (order, 2)
    *_, optimizers, hypergradient = given["arguments"]
    assert hypergradient.func.__name__ == "finite_difference"
    assert hypergradient.keywords == {"radius": 0.07}
    assert compiled["remat"] is True
    assert clips["clip"] == 0.0  # of the last one built, the virtual step's
    weights = {"w": jnp.full(4, 10.0)}
    clipped, free = (
        optimizer.update(weights, optimizer.init(weights), weights)[0]["w"]
        for optimizer in (optimizers.weights, optimizers.virtual)
    )
    rate, decay = config.weights.learning_rate, config.weights.weight_decay
    np.testing.assert_allclose(clipped, -rate * (0.05 + decay * 10), rtol=1e-4)
    np.testing.assert_allclose(free, -rate * (10 + decay * 10), rtol=1e-4)


@pytest.mark.parametrize(("preset", "scale"), [("code", 1e-3), ("paper", 0.0)])
def test_first_alphas(preset: str, scale: float, config: ConfigDict) -> None:
    config.preset = preset
    resolve_preset(config)
    state = search.start(search.build(config, _dataset()), [0])
    alphas = np.concatenate([np.ravel(a) for a in jax.tree.leaves(state.alphas)])
    assert np.std(alphas) == pytest.approx(scale, rel=0.7)
    assert (np.abs(alphas).max() > 0) == (scale > 0)


def test_each_level_gets_its_half(
    config: ConfigDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first half of the images trains the weights, the second the alphas."""
    config.update(accumulate=1, precision="float32", batch_size=8)
    config.augmentation.update(crop_padding=0, flip=False)
    resolve_preset(config)

    def make_search_step(*args: Any, **options: Any) -> Any:
        def step(state: Any, train: Batch, valid: Batch) -> Any:
            metrics = {
                "train_loss": train.labels.mean(),
                "train_accuracy": train.images.mean(),
                "valid_loss": valid.labels.mean(),
                "valid_accuracy": valid.images.mean(),
            }
            return state._replace(step=state.step + 1), metrics

        return step

    monkeypatch.setattr(search, "make_search_step", make_search_step)
    task = search.build(config, _dataset())
    plan = search.plan_of(task)
    state = search.start(task, [0])
    arguments = plan.feed.arguments(plan.feed.order(state, 0))
    _, sums = plan.step(state, loop.initial_sums(plan), *arguments, np.int32(1))
    black, white = {"loss": 1.0, "accuracy": -1.0}, {"loss": 2.0, "accuracy": 1.0}
    wanted = {f"train_{name}": value for name, value in black.items()}
    wanted |= {f"valid_{name}": value for name, value in white.items()}
    found = {name: float(value) for name, value in sums.items()}
    assert found == pytest.approx(wanted, rel=1e-6)
