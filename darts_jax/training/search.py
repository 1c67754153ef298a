"""A whole search: data, supernet, bilevel steps, a genotype an epoch, the result."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from darts_jax.bilevel import HYPERGRADIENTS
from darts_jax.data import Dataset, Split, epoch_batches, iid_batches, split
from darts_jax.genotype import Genotype, pretty, save
from darts_jax.models import count_parameters, make_supernet
from darts_jax.one_shot import ONE_SHOT, OneShot
from darts_jax.spaces import Space
from darts_jax.training import loop, setup
from darts_jax.training.evaluation import make_evaluate
from darts_jax.training.feed import Feed, make_feed, take
from darts_jax.training.interrupt import Interrupt
from darts_jax.training.metrics import entropy
from darts_jax.training.optimizers import Schedule, alpha_optimizer
from darts_jax.training.randomness import AUGMENT_TRAIN, AUGMENT_VALID, step_key
from darts_jax.training.run_directory import RunDirectory
from darts_jax.training.search_step import (
    Optimizers,
    SearchStep,
    initial_search_state,
    make_search_step,
)
from darts_jax.types import Batch, EdgeWeights, Model, SearchState

METRICS = ("train_loss", "train_accuracy", "valid_loss", "valid_accuracy")


def hypergradient_of(config: Any) -> Callable[..., Any]:
    """Returns the config's hypergradient with its options bound."""
    chosen = HYPERGRADIENTS[config.hypergradient]
    if config.hypergradient == "finite_difference":
        chosen = partial(chosen, radius=config.finite_difference.radius)
    return chosen


def data_step(
    search_step: SearchStep,
    feed: Feed,
    augment: Callable[..., jax.Array],
    steps: int,
) -> Callable[..., Any]:
    """Returns the compiled `(state, sums, order) -> (state, sums)` of the loop.

    feed: of the parts "train" and "valid". Batches are gathered, unless they are streamed,
    and augmented inside the program; both halves of the data get the train transform, as in
    the reference.
    """

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(
        state: SearchState, sums: loop.Sums, order: Any, data: Any
    ) -> tuple[SearchState, loop.Sums]:
        epoch, i = state.step // steps, state.step % steps

        def batch(part: str, purpose: int) -> Batch:
            taken = take(data[part], order and order[part], i)
            key = step_key(state.key, purpose, epoch, i)
            return Batch(augment(key, taken.images), taken.labels)

        state, metrics = search_step(
            state, batch("train", AUGMENT_TRAIN), batch("valid", AUGMENT_VALID)
        )
        return state, {name: sums[name] + metrics[name] for name in sums}

    return lambda state, sums, order: step(state, sums, *feed.arguments(order))


def edge_weight_metrics(
    edge_weights: Mapping[str, Any], genotype: Genotype
) -> dict[str, Any]:
    """Returns entropy and number of skip connections of every cell kind."""
    row: dict[str, Any] = {}
    for kind, values in edge_weights.items():
        row[f"entropy_{kind}"] = float(entropy(jnp.asarray(values)))
        operations = [op for node in genotype.cells[kind].nodes for op, _ in node]
        row[f"skips_{kind}"] = operations.count("skip_connect")
    return row


class Search(NamedTuple):
    """A search as its config describes it, before any training."""

    config: Any
    dataset: Dataset
    train: setup.DeviceSplit | Split  # the lower level's data
    valid: setup.DeviceSplit | Split  # the upper level's
    steps: int  # an epoch
    space: Space
    strategy: OneShot
    model: Model
    schedule: Schedule
    optimizers: Optimizers
    relax: Callable[..., EdgeWeights]
    evaluate: Callable[..., dict[str, float]]

    def edge_weights(self, state: SearchState) -> dict[str, np.ndarray]:
        """The relaxed alphas of every cell kind, `[E, O]`, on the host."""
        return jax.tree.map(np.asarray, self.relax(state.alphas))

    def infer(self, state: SearchState) -> dict[str, float]:
        """The supernet's metrics on the upper level's data, in inference mode."""
        relaxed = self.relax(state.alphas)
        return self.evaluate(state.weights, state.batch_stats, *self.valid, relaxed)


def build(config: Any) -> Search:
    """Returns the search that `config` describes, with its data on the device.

    Raises:
        UserError: the data or the config cannot be used.
    """
    dataset = setup.read_dataset(config)
    space, strategy = setup.build_space(config), ONE_SHOT[config.one_shot]
    train, valid = map(setup.on_device, split(dataset, config.dataset.train_fraction))
    steps = setup.steps_per_epoch(config.batch_size, len(train.labels), "lower-level")
    setup.steps_per_epoch(config.batch_size, len(valid.labels), "upper-level")
    model = make_supernet(
        space,
        image_shape=dataset.train_images.shape[1:],
        num_classes=dataset.num_classes,
        num_cells=config.model.num_cells,
        channels=config.model.channels,
        stem_multiplier=config.model.stem_multiplier,
        stem_affine=config.batch_norm.stem_affine,
        evaluation=config.batch_norm.evaluation,
        implementation=config.model.implementation,
    )
    schedule = setup.build_schedule(config, steps)
    chosen = config.alphas
    optimizers = Optimizers(
        setup.build_weight_optimizer(config, schedule),
        setup.build_weight_optimizer(config, schedule, clip=False),
        alpha_optimizer(
            chosen.learning_rate,
            b1=chosen.b1,
            b2=chosen.b2,
            weight_decay=chosen.weight_decay,
        ),
    )
    return Search(
        config=config,
        dataset=dataset,
        train=train,
        valid=valid,
        steps=steps,
        space=space,
        strategy=strategy,
        model=model,
        schedule=schedule,
        optimizers=optimizers,
        relax=jax.jit(partial(strategy.relax, space)),
        evaluate=make_evaluate(
            model, mean=dataset.mean, std=dataset.std, batch_size=config.batch_size
        ),
    )


def start(task: Search) -> SearchState:
    """Returns the state before the first step."""
    initialise = partial(
        initial_search_state,
        task.model,
        task.strategy,
        task.space,
        task.optimizers,
        alpha_scale=task.config.alphas.init_scale,
    )
    return jax.jit(initialise)(jax.random.key(task.config.seed))


def plan_of(task: Search, run: RunDirectory) -> loop.Plan:
    """Returns what the epoch loop needs to know of the search."""
    config, size, steps = task.config, task.config.batch_size, task.steps
    search_step = make_search_step(
        task.model,
        task.strategy,
        task.space,
        task.optimizers,
        hypergradient_of(config),
        order=config.alphas.order,
    )

    def order(state: SearchState, epoch: int) -> dict[str, jax.Array]:
        number = len(task.valid.labels)
        valid = iid_batches(state.key, epoch, number, size, steps)
        train = epoch_batches(state.key, epoch, len(task.train.labels), size)
        return {"train": train, "valid": valid}

    crops = {"train": AUGMENT_TRAIN, "valid": AUGMENT_VALID}
    feed = make_feed(
        {"train": task.train, "valid": task.valid},
        order,
        steps=steps,
        crops=crops if setup.crops_on_host(config, task.dataset) else None,
    )
    augment = setup.build_augment(config, task.dataset)
    return loop.Plan(
        step=data_step(search_step, feed, augment, steps),
        order=feed.order,
        end_epoch=partial(record_epoch, task, run),
        metrics=METRICS,
        steps_per_epoch=steps,
        images_per_step=2 * size,
        close=feed.close,
    )


def record_epoch(
    task: Search,
    run: RunDirectory,
    state: SearchState,
    epoch: int,
    means: dict[str, float],
) -> dict[str, Any]:
    """Writes the genotype of an epoch; returns what its row of metrics.jsonl adds."""
    edge_weights = task.edge_weights(state)
    genotype = task.strategy.select(task.space, edge_weights)
    run.append(
        "genotypes",
        {
            "epoch": epoch,
            "genotype": genotype.to_json(),
            "edge_weights": edge_weights,
            "alphas": state.alphas,
            "primitives": task.space.primitives,
        },
    )
    step = (epoch + 1) * task.steps
    run.text(step, "genotype", pretty(genotype))
    for kind, values in edge_weights.items():
        run.heat_map(step, f"edge weights, {kind} (edges down)", values)
    row = {"learning_rate": float(task.schedule(jnp.int32(epoch * task.steps)))}
    row |= edge_weight_metrics(edge_weights, genotype)
    every = task.config.evaluate_every
    if every and (epoch + 1) % every == 0:
        inferred = task.infer(state)
        row |= {f"supernet_{name}": value for name, value in inferred.items()}
    return row


def search(run: RunDirectory, config: Any, interrupt: Interrupt) -> dict | None:
    """Runs, or resumes, the search of `config` in `run`.

    Returns the content of result.json, or None when a signal stopped the run (it is saved).

    Raises:
        UserError: the data or the config cannot be used, or training diverges.
    """
    if run.result is not None:
        return run.result
    task = build(config)
    plan = plan_of(task, run)
    state, complete = loop.run_epochs(plan, start(task), run, config, interrupt)
    if not complete:
        return None
    genotype = task.strategy.select(task.space, task.edge_weights(state))
    save(genotype, run.path / "genotype.json")
    result = {
        "command": "search",
        "genotype": genotype.to_json(),
        "valid_accuracy": task.infer(state)["accuracy"],
        "parameters": count_parameters(state.weights),
        "seconds": sum(row["seconds"] for row in run.rows("timing")),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    run.write_json("result.json", result)
    return result
