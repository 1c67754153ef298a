"""A whole search: data, supernet, bilevel steps, a genotype an epoch, the result."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from darts_jax.bilevel import HYPERGRADIENTS
from darts_jax.data import epoch_batches, iid_batches, split
from darts_jax.genotype import Genotype, save
from darts_jax.models import count_parameters, make_supernet
from darts_jax.one_shot import ONE_SHOT
from darts_jax.training import loop, setup
from darts_jax.training.evaluation import make_evaluate
from darts_jax.training.interrupt import Interrupt
from darts_jax.training.metrics import entropy
from darts_jax.training.optimizers import alpha_optimizer
from darts_jax.training.randomness import AUGMENT_TRAIN, AUGMENT_VALID, step_key
from darts_jax.training.run_directory import RunDirectory
from darts_jax.training.search_step import (
    Optimizers,
    SearchStep,
    initial_search_state,
    make_search_step,
)
from darts_jax.types import Batch, SearchState

METRICS = ("train_loss", "train_accuracy", "valid_loss", "valid_accuracy")


def hypergradient_of(config: Any) -> Callable[..., Any]:
    """Returns the config's hypergradient with its options bound."""
    chosen = HYPERGRADIENTS[config.hypergradient]
    if config.hypergradient == "finite_difference":
        chosen = partial(chosen, radius=config.finite_difference.radius)
    return chosen


def data_step(
    search_step: SearchStep,
    train: setup.DeviceSplit,
    valid: setup.DeviceSplit,
    augment: Callable[..., jax.Array],
    steps: int,
) -> Callable[..., Any]:
    """Returns the compiled `(state, sums, order) -> (state, sums)` of the loop.

    order: {"train": int32 `[steps, B]`, "valid": int32 `[steps, B]`}. Batches are gathered
    and augmented inside the program; both halves of the data get the train transform, as in
    the reference.
    """

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(
        state: SearchState, sums: loop.Sums, order: Any, data: Any
    ) -> tuple[SearchState, loop.Sums]:
        epoch, i = state.step // steps, state.step % steps

        def batch(part: str, purpose: int) -> Batch:
            rows = order[part][i]
            key = step_key(state.key, purpose, epoch, i)
            images = augment(key, data[part].images[rows])
            return Batch(images, data[part].labels[rows])

        state, metrics = search_step(
            state, batch("train", AUGMENT_TRAIN), batch("valid", AUGMENT_VALID)
        )
        return state, {name: sums[name] + metrics[name] for name in sums}

    # The data is an argument: a closed-over array would be a constant of the program.
    return lambda state, sums, order: step(
        state, sums, order, {"train": train, "valid": valid}
    )


def edge_weight_metrics(edge_weights: dict[str, Any], genotype: Genotype) -> dict:
    """Returns entropy and number of skip connections of every cell kind."""
    row: dict[str, Any] = {}
    for kind, values in edge_weights.items():
        row[f"entropy_{kind}"] = float(entropy(jnp.asarray(values)))
        operations = [op for node in genotype.cells[kind].nodes for op, _ in node]
        row[f"skips_{kind}"] = operations.count("skip_connect")
    return row


def search(run: RunDirectory, config: Any, interrupt: Interrupt) -> dict | None:
    """Runs, or resumes, the search of `config` in `run`.

    Returns the content of result.json, or None when a signal stopped the run (it is saved).

    Raises:
        UserError: the data or the config cannot be used, or training diverges.
    """
    if run.result is not None:
        return run.result
    dataset = setup.read_dataset(config)
    space, strategy = setup.build_space(config), ONE_SHOT[config.one_shot]
    train, valid = map(setup.on_device, split(dataset, config.dataset.train_fraction))
    size = config.batch_size
    steps = setup.steps_per_epoch(size, len(train.labels), "lower-level")
    setup.steps_per_epoch(size, len(valid.labels), "upper-level")
    model = make_supernet(
        space,
        image_shape=dataset.train_images.shape[1:],
        num_classes=dataset.num_classes,
        num_cells=config.model.num_cells,
        channels=config.model.channels,
        stem_multiplier=config.model.stem_multiplier,
        stem_affine=config.batch_norm.stem_affine,
        evaluation=config.batch_norm.evaluation,
    )
    schedule = setup.build_schedule(config, steps)
    optimizers = Optimizers(
        setup.build_weight_optimizer(config, schedule),
        setup.build_weight_optimizer(config, schedule, clip=False),
        alpha_optimizer(
            config.alphas.learning_rate,
            b1=config.alphas.b1,
            b2=config.alphas.b2,
            weight_decay=config.alphas.weight_decay,
        ),
    )
    search_step = make_search_step(
        model,
        strategy,
        space,
        optimizers,
        hypergradient_of(config),
        order=config.alphas.order,
    )
    evaluate = make_evaluate(model, mean=dataset.mean, std=dataset.std, batch_size=size)
    relax = jax.jit(partial(strategy.relax, space))

    def evaluated(state: SearchState) -> dict[str, float]:
        return evaluate(state.weights, state.batch_stats, *valid, relax(state.alphas))

    def order(state: SearchState, epoch: int) -> dict[str, jax.Array]:
        valid_rows = iid_batches(state.key, epoch, len(valid.labels), size, steps)
        train_rows = epoch_batches(state.key, epoch, len(train.labels), size)
        return {"train": train_rows, "valid": valid_rows}

    def end_epoch(
        state: SearchState, epoch: int, means: dict[str, float]
    ) -> dict[str, Any]:
        edge_weights = jax.tree.map(np.asarray, relax(state.alphas))
        genotype = strategy.select(space, edge_weights)
        run.append(
            "genotypes",
            {
                "epoch": epoch,
                "genotype": genotype.to_json(),
                "edge_weights": edge_weights,
                "alphas": state.alphas,
                "primitives": space.primitives,
            },
        )
        row = {"learning_rate": float(schedule(jnp.int32(epoch * steps)))}
        row |= edge_weight_metrics(edge_weights, genotype)
        every = config.evaluate_every
        if every and (epoch + 1) % every == 0:
            inferred = evaluated(state)
            row |= {f"supernet_{name}": value for name, value in inferred.items()}
        return row

    initialise = jax.jit(
        partial(
            initial_search_state,
            model,
            strategy,
            space,
            optimizers,
            alpha_scale=config.alphas.init_scale,
        )
    )
    state = initialise(jax.random.key(config.seed))
    plan = loop.Plan(
        step=data_step(
            search_step, train, valid, setup.build_augment(config, dataset), steps
        ),
        order=order,
        end_epoch=end_epoch,
        metrics=METRICS,
        steps_per_epoch=steps,
        images_per_step=2 * size,
    )
    state, complete = loop.run_epochs(plan, state, run, config, interrupt)
    if not complete:
        return None
    edge_weights = jax.tree.map(np.asarray, relax(state.alphas))
    genotype = strategy.select(space, edge_weights)
    save(genotype, run.path / "genotype.json")
    result = {
        "command": "search",
        "genotype": genotype.to_json(),
        "valid_accuracy": evaluated(state)["accuracy"],
        "parameters": count_parameters(state.weights),
        "seconds": sum(row["seconds"] for row in run.rows("timing")),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    run.write_json("result.json", result)
    return result
