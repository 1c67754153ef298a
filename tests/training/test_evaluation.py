"""Evaluation: every image once, whatever the size of a batch."""

from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darts_jax.data import Streaming, load_dataset
from darts_jax.one_shot import DARTS
from darts_jax.training.evaluation import make_evaluate
from darts_jax.training.parallel import one_device
from darts_jax.types import Model

NUMBER = 23
MEAN, STD = (0.4,), (0.3,)


def make_split(toy: ModuleType) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (NUMBER, *toy.IMAGE), np.uint8)
    return images, rng.integers(0, 10, NUMBER).astype(np.int32)


def linear(
    weights: Any, stats: Any, images: jax.Array, *, train: bool
) -> tuple[Any, Any]:
    assert train is False
    return images.reshape(len(images), -1) @ weights + stats, stats


LINEAR = Model(init=lambda key: (None, None), apply=linear)


def by_hand(
    weights: np.ndarray, stats: np.ndarray, images: np.ndarray, labels: np.ndarray
) -> dict[str, float]:
    inputs = (images / 255 - MEAN[0]) / STD[0]
    logits = inputs.reshape(NUMBER, -1) @ weights + stats
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    ranks = (-logits).argsort(-1).argsort(-1)[np.arange(NUMBER), labels]
    return {
        "loss": -log_p[np.arange(NUMBER), labels].mean(),
        "accuracy": (ranks == 0).mean(),
        "top5_accuracy": (ranks < 5).mean(),
    }


@pytest.mark.parametrize("batch_size", [1, 4, 22, 23, 24, 100])
def test_every_image_counts_once(batch_size: int, toy: ModuleType) -> None:
    images, labels = make_split(toy)
    rng = np.random.default_rng(1)
    weights, stats = rng.normal(size=(4, 10)), rng.normal(size=10)
    evaluate = make_evaluate(
        LINEAR, mean=MEAN, std=STD, batch_size=batch_size, layout=one_device()
    )
    found = evaluate(jnp.asarray(weights), jnp.asarray(stats), images, labels)
    wanted = by_hand(weights, stats, images, labels)
    assert found == pytest.approx(wanted, rel=1e-5)
    assert all(type(value) is float for value in found.values())


def test_one_program_serves_all_batches(toy: ModuleType) -> None:
    traces = []

    def apply(*args: Any, **kwargs: Any) -> Any:
        traces.append(args[2].shape)
        return linear(*args, **kwargs)

    evaluate = make_evaluate(
        LINEAR._replace(apply=apply),
        mean=MEAN,
        std=STD,
        batch_size=4,
        layout=one_device(),
    )
    evaluate(jnp.ones((4, 10)), jnp.zeros(10), *make_split(toy))
    assert traces == [(4, *toy.IMAGE)]


def test_uneven_batches_of_a_supernet(toy: ModuleType) -> None:
    """The edge weights are handed on; it runs in inference mode, on running statistics."""
    images, labels = make_split(toy)
    weights, stats = toy.SUPERNET.init(jax.random.key(0))
    alphas = DARTS.initial_alphas(toy.SPACE, jax.random.key(1), 1.0)
    arguments = (
        weights,
        stats,
        images,
        labels % toy.CLASSES,
        DARTS.relax(toy.SPACE, alphas),
    )
    found, whole = (
        make_evaluate(
            toy.SUPERNET, mean=MEAN, std=STD, batch_size=size, layout=one_device()
        )(*arguments)
        for size in (5, NUMBER)
    )
    assert found == pytest.approx(whole, rel=1e-5)
    other = DARTS.relax(toy.SPACE, jax.tree.map(jnp.zeros_like, alphas))
    evaluate = make_evaluate(
        toy.SUPERNET, mean=MEAN, std=STD, batch_size=5, layout=one_device()
    )
    assert evaluate(*arguments[:4], other)["loss"] != pytest.approx(found["loss"])
    shifted = jax.tree.map(lambda x: x + jnp.arange(5.0), stats)
    changed = evaluate(weights, shifted, *arguments[2:])
    assert changed["loss"] != pytest.approx(found["loss"])


@pytest.mark.parametrize("batch_size", [4, 23, 100])
def test_streamed_images_are_counted_alike(
    batch_size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last batch is filled up there too, and the fillers do not count."""
    monkeypatch.setenv("DARTS_JAX_DATA", str(tmp_path))
    options: dict[str, Any] = {"num_examples": 40, "num_classes": 3, "image_size": 4}
    rng = np.random.default_rng(1)
    weights, stats = jnp.asarray(rng.normal(size=(48, 10))), jnp.zeros(10)
    found = []
    for mode in ("never", "always"):
        dataset = load_dataset("synthetic", streaming=Streaming(mode), **options)
        evaluate = make_evaluate(
            LINEAR,
            mean=dataset.mean,
            std=dataset.std,
            batch_size=batch_size,
            layout=one_device(),
        )
        found.append(evaluate(weights, stats, dataset.test_images, dataset.test_labels))
    assert dataset.streamed and len(dataset.test_labels) == 10
    assert found[0] == found[1]
