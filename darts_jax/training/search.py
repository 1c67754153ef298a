"""A whole search: data, supernet, bilevel steps, a genotype an epoch, the result."""

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from darts_jax.data import Dataset, Split, epoch_batches, iid_batches, split
from darts_jax.genotype import pretty, save
from darts_jax.models import count_parameters, make_supernet, packed
from darts_jax.one_shot import ONE_SHOT, OneShot
from darts_jax.spaces import Space
from darts_jax.training import loop, setup
from darts_jax.training.compilation import compile_steps, steps_at_once
from darts_jax.training.evaluation import make_evaluate
from darts_jax.training.feed import make_feed, take
from darts_jax.training.interrupt import Interrupt
from darts_jax.training.metrics import edge_weight_metrics
from darts_jax.training.optimizers import Schedule
from darts_jax.training.parallel import (
    Layout,
    leads,
    make_layout,
    process,
)
from darts_jax.training.randomness import AUGMENT_TRAIN, AUGMENT_VALID, step_key
from darts_jax.training.run_directory import RunDirectory
from darts_jax.training.same_run import fingerprint
from darts_jax.training.search_step import (
    Optimizers,
    SearchStep,
    initial_search_state,
    make_search_step,
)
from darts_jax.training.seeds import Kind, all_stand, train
from darts_jax.types import Batch, EdgeWeights, Model, SearchState

METRICS = ("train_loss", "train_accuracy", "valid_loss", "valid_accuracy")


def data_step(
    search_step: SearchStep,
    augment: Callable[..., jax.Array],
    steps: int,
    layout: Layout,
) -> Callable[..., Any]:
    """Returns `(state, sums, order, data) -> (state, sums)`, a step that finds its batches.

    They are gathered, unless they are streamed, and augmented inside the program; both
    halves of the data get the train transform, as in the reference.
    """

    def step(
        state: SearchState, sums: loop.Sums, order: Any, data: Any
    ) -> tuple[SearchState, loop.Sums]:
        epoch, i = state.step // steps, state.step % steps

        def batch(part: str, purpose: int) -> Batch:
            taken = layout.split(take(data[part], order and order[part], i))
            key = step_key(state.key, purpose, epoch, i)
            return Batch(augment(key, taken.images), taken.labels)

        state, metrics = search_step(
            state, batch("train", AUGMENT_TRAIN), batch("valid", AUGMENT_VALID)
        )
        return state, {name: sums[name] + metrics[name] for name in sums}

    return step


class Search(NamedTuple):
    """A search as its config describes it, before any training."""

    config: Any
    dataset: Dataset
    layout: Layout
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


def build(config: Any, dataset: Dataset, seeds: int = 0) -> Search:
    """Returns the search that `config` describes, with its data on the devices.

    seeds: how many runs are one program; 0: one run.

    Raises:
        UserError: the data or the config cannot be used.
    """
    layout = make_layout(config, seeds)
    space, strategy = setup.build_space(config), ONE_SHOT[config.one_shot]
    train, valid = (
        setup.on_device(part, layout)
        for part in split(dataset, config.dataset.train_fraction)
    )
    steps = setup.steps_per_epoch(config.batch_size, len(train.labels), "lower-level")
    setup.steps_per_epoch(config.batch_size, len(valid.labels), "upper-level")
    model = packed(
        make_supernet(
            space,
            image_shape=dataset.train_images.shape[1:],
            num_classes=dataset.num_classes,
            num_cells=config.model.num_cells,
            channels=config.model.channels,
            stem_multiplier=config.model.stem_multiplier,
            stem=config.model.stem,
            stem_affine=config.batch_norm.stem_affine,
            evaluation=config.batch_norm.evaluation,
            **setup.computation(config),
        )
    )
    schedule = setup.build_schedule(config, steps)
    optimizers = Optimizers(
        setup.build_weight_optimizer(config, schedule),
        setup.build_weight_optimizer(config, schedule, clip=False),
        setup.build_alpha_optimizer(config),
    )
    return Search(
        config=config,
        dataset=dataset,
        layout=layout,
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
            model,
            mean=dataset.mean,
            std=dataset.std,
            batch_size=config.batch_size,
            layout=layout,
        ),
    )


def warnings(config: Any) -> list[str]:
    """Returns a line where no cell of the supernet is a normal one; none where all is well."""
    if setup.build_space(config).skeleton != "darts" or config.model.num_cells > 2:
        return []
    return [
        f"note: model.num_cells={config.model.num_cells} makes reduction cells only (at 1/3 "
        "and 2/3 of the depth): the normal cell is not trained; choose at least 3"
    ]


def start(task: Search, seeds: Sequence[int]) -> SearchState:
    """Returns the state of the seeds before the first step."""
    initialise = partial(
        initial_search_state,
        task.model,
        task.strategy,
        task.space,
        task.optimizers,
        alpha_scale=task.config.alphas.init_scale,
    )
    return task.layout.start(initialise, seeds)


def plan_of(task: Search) -> loop.Plan:
    """Returns what the epoch loop needs to know of the search."""
    config, size, steps = task.config, task.config.batch_size, task.steps
    layout, streamed = task.layout, task.dataset.streamed
    search_step = make_search_step(
        task.model,
        task.strategy,
        task.space,
        task.optimizers,
        setup.build_hypergradient(config),
        order=config.alphas.order,
        parts=config.accumulate,
    )

    def rows(key: jax.Array, epoch: int) -> dict[str, jax.Array]:
        number = len(task.valid.labels)
        valid = iid_batches(key, epoch, number, size, steps)
        train = epoch_batches(key, epoch, len(task.train.labels), size)
        return {"train": train, "valid": valid}

    crops = {"train": AUGMENT_TRAIN, "valid": AUGMENT_VALID}
    feed = make_feed(
        {"train": task.train, "valid": task.valid},
        lambda state, epoch: layout.per_seed(rows)(state.key, epoch),
        steps=steps,
        crops=crops if setup.crops_on_host(config, task.dataset) else None,
        process=process(),
        put=layout.put_part,
    )
    augment = setup.build_augment(config, task.dataset)
    at_once = steps_at_once(config, streamed)
    step = compile_steps(
        data_step(search_step, augment, steps, layout),
        layout,
        at_once,
        remat=config.model.remat,
    )
    return loop.Plan(
        step=step,
        feed=feed,
        end_epoch=partial(record_epoch, task),
        metrics=METRICS,
        steps_per_epoch=steps,
        images_per_step=2 * size,
        layout=layout,
        at_once=at_once,
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
    run.tensorboard.text(step, "genotype", pretty(genotype))
    for kind, values in edge_weights.items():
        run.tensorboard.heat_map(step, f"edge weights, {kind} (edges down)", values)
    row = {"learning_rate": float(task.schedule(jnp.int32(epoch * task.steps)))}
    row |= edge_weight_metrics(edge_weights, genotype)
    every = task.config.evaluate_every
    if every and (epoch + 1) % every == 0:
        inferred = task.infer(state)
        row |= {f"supernet_{name}": value for name, value in inferred.items()}
    return row


def search(
    runs: Sequence[RunDirectory], config: Any, interrupt: Interrupt
) -> list[dict[str, Any] | None] | None:
    """Runs, or resumes, the search of `config` for the seed of every run in `runs`.

    Returns the contents of their result.json, None for a run that has diverged, or None when a
    signal stopped them (all that was done is saved).

    Raises:
        UserError: the data or the config cannot be used.
    """
    lists = setup.edge_primitives_digest(config)
    if all_stand(runs, lists):
        return [run.result for run in runs]
    dataset = setup.read_dataset(config)
    for run in runs:
        run.bind_data(fingerprint(dataset, test=False) | lists)
    if leads():
        sys.stderr.writelines(f"{line}\n" for line in warnings(config))
    kind = Kind(partial(build, config, dataset), start, plan_of, finish)
    return train(kind, runs, config, interrupt, streamed=dataset.streamed)


def finish(task: Search, run: RunDirectory, state: SearchState) -> None:
    """Writes the genotype and the result of a run whose last epoch is done."""
    genotype = task.strategy.select(task.space, task.edge_weights(state))
    if run.leads:
        save(genotype, run.path / "genotype.json")
    result = {
        "command": "search",
        "genotype": genotype.to_json(),
        "valid_accuracy": task.infer(state)["accuracy"],
        "parameters": count_parameters(state.weights),
        "seconds": sum(row.get("seconds", 0.0) for row in run.rows("timing")),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    run.write_json("result.json", result)
