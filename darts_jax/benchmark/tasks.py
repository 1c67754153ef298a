"""A workload at a size as something to compile and run: the step, its state, its batches."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from darts_jax import zoo
from darts_jax.benchmark.sizes import NUM_CLASSES, USUAL, WORKLOADS, Size, Variant
from darts_jax.bilevel import HYPERGRADIENTS
from darts_jax.genotype import Genotype
from darts_jax.models import make_network, make_supernet, packed
from darts_jax.one_shot import ONE_SHOT
from darts_jax.spaces import SPACES
from darts_jax.training.optimizers import alpha_optimizer, weight_optimizer
from darts_jax.training.retrain_step import initial_retrain_state, make_retrain_step
from darts_jax.training.search_step import (
    Levels,
    Optimizers,
    initial_search_state,
    make_search_step,
    weights_step,
)
from darts_jax.types import Batch

LEARNING_RATE, ALPHAS_LEARNING_RATE, ALPHA_SCALE = 0.025, 3e-4, 1e-3
AUXILIARY_WEIGHT = 0.4


class Task(NamedTuple):
    """A step `(state, *batches) -> (state, metrics)`, `init(key) -> state`, the batches."""

    init: Callable[[jax.Array], Any]
    step: Callable[..., tuple[Any, dict[str, jax.Array]]]
    batches: tuple[Batch, ...]


def make_task(
    size: Size,
    name: str,
    variant: Variant = USUAL,
    before: optax.GradientTransformation | None = None,
) -> Task:
    """Returns the task of the workload `name` of WORKLOADS, with random images.

    variant: of it; the seeds are the program's.
    before: what gradients go through before the optimizers; None: nothing.
    """
    before = before or optax.identity()
    if WORKLOADS[name].network == "network":
        return _retraining(size, variant, before)
    return _search(size, name, variant, before)


def _batch(size: Size, number: int, seed: int) -> Batch:
    rng = np.random.default_rng(seed)
    images = rng.standard_normal((number, *size.image), np.float32)
    labels = rng.integers(NUM_CLASSES, size=number, dtype=np.int32)
    return Batch(jnp.asarray(images), jnp.asarray(labels))


def _search(
    size: Size, name: str, variant: Variant, before: optax.GradientTransformation
) -> Task:
    workload, strategy = WORKLOADS[name], ONE_SHOT["darts"]
    space = SPACES[size.space]()
    model = packed(
        make_supernet(
            space,
            image_shape=size.image,
            num_classes=NUM_CLASSES,
            num_cells=size.num_cells,
            channels=size.channels,
            stem_multiplier=size.stem_multiplier,
            implementation=variant.implementation,
            precision=variant.precision,
        )
    )
    options: dict[str, Any] = {
        "nesterov": size.nesterov,
        "weight_decay": size.weight_decay,
    }
    chosen = (
        weight_optimizer(LEARNING_RATE, **options),
        weight_optimizer(LEARNING_RATE, clip=0, **options),
        alpha_optimizer(ALPHAS_LEARNING_RATE),
    )
    optimizers = Optimizers(*(optax.chain(before, optimizer) for optimizer in chosen))

    def init(key: jax.Array) -> Any:
        return initial_search_state(
            model, strategy, space, optimizers, key, alpha_scale=ALPHA_SCALE
        )

    batches = tuple(_batch(size, size.batch, seed) for seed in range(workload.batches))
    if workload.hypergradient:
        step = make_search_step(
            model,
            strategy,
            space,
            optimizers,
            HYPERGRADIENTS[workload.hypergradient],
            order=size.order,
        )
        return Task(init, step, batches)
    levels = Levels(model, strategy, space, optimizers, HYPERGRADIENTS["first_order"])
    return Task(init, lambda state, train: weights_step(levels, state, train), batches)


def _retraining(
    size: Size, variant: Variant, before: optax.GradientTransformation
) -> Task:
    chosen = size.retrain
    assert chosen is not None
    model = packed(
        make_network(
            Genotype.from_json(zoo.entry(chosen.genotype)["genotype"]),
            image_shape=size.image,
            num_classes=NUM_CLASSES,
            num_cells=chosen.num_cells,
            channels=chosen.channels,
            stem_multiplier=size.stem_multiplier,
            auxiliary=chosen.auxiliary,
            implementation=variant.implementation,
            precision=variant.precision,
        )
    )
    optimizer = optax.chain(before, weight_optimizer(LEARNING_RATE))
    step = make_retrain_step(
        model,
        optimizer,
        drop_path=lambda _: jnp.float32(chosen.drop_path),
        auxiliary_weight=AUXILIARY_WEIGHT,
    )
    return Task(
        lambda key: initial_retrain_state(model, optimizer, key),
        step,
        (_batch(size, chosen.batch, 0),),
    )
