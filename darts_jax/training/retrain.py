"""A whole retraining: a genotype's network from scratch, tested at the end."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from darts_jax.data import Dataset, Split, epoch_batches
from darts_jax.genotype import Genotype, load, save
from darts_jax.models import (
    count_multiply_adds,
    count_parameters,
    make_network,
    packed,
)
from darts_jax.training import checkpoints, loop, setup
from darts_jax.training.compilation import compile_steps, steps_at_once
from darts_jax.training.evaluation import make_evaluate
from darts_jax.training.feed import make_feed, take
from darts_jax.training.genotype_choice import genotype_of
from darts_jax.training.interrupt import Interrupt
from darts_jax.training.parallel import (
    Layout,
    every_device,
    make_layout,
    process,
)
from darts_jax.training.randomness import AUGMENT_TRAIN, step_key
from darts_jax.training.retrain_step import (
    RetrainStep,
    initial_retrain_state,
    make_retrain_step,
)
from darts_jax.training.run_directory import RunDirectory, read_manifest
from darts_jax.training.same_run import check_same_data, fingerprint
from darts_jax.training.seeds import Kind, all_stand, train
from darts_jax.types import Batch, Model, RetrainState

METRICS = ("train_loss", "train_accuracy")


class Retraining(NamedTuple):
    """A network and what trains it; enough to test a checkpoint again."""

    config: Any
    genotype: Genotype
    dataset: Dataset
    layout: Layout
    model: Model
    schedule: Any
    optimizer: Any
    steps: int  # an epoch


def build(
    config: Any,
    genotype: Genotype,
    dataset: Dataset,
    seeds: int = 0,
    layout: Layout | None = None,
) -> Retraining:
    """Returns the retraining of `genotype` that `config` describes.

    seeds: how many runs are one program; 0: one run. layout: None: what the config asks for.

    Raises:
        UserError: the data or the config cannot be used.
    """
    layout = layout or make_layout(config, seeds)
    number = len(dataset.train_labels)
    steps = setup.steps_per_epoch(config.batch_size, number, "training")
    model = packed(
        make_network(
            genotype,
            image_shape=dataset.train_images.shape[1:],
            num_classes=dataset.num_classes,
            num_cells=config.model.num_cells,
            channels=config.model.channels,
            stem_multiplier=config.model.stem_multiplier,
            stem=config.model.stem,
            auxiliary=config.model.auxiliary,
            **setup.computation(config),
        )
    )
    schedule = setup.build_schedule(config, steps)
    optimizer = setup.build_weight_optimizer(config, schedule)
    return Retraining(
        config, genotype, dataset, layout, model, schedule, optimizer, steps
    )


def data_step(
    retrain_step: RetrainStep, augment: Any, steps: int, layout: Layout
) -> Any:
    """Returns `(state, sums, order, data) -> (state, sums)`, a step that finds its batch."""

    def step(
        state: RetrainState, sums: loop.Sums, order: Any, data: Any
    ) -> tuple[RetrainState, loop.Sums]:
        epoch, i = state.step // steps, state.step % steps
        key = step_key(state.key, AUGMENT_TRAIN, epoch, i)
        taken = layout.split(take(data["train"], order and order["train"], i))
        images = augment(key, taken.images)
        state, metrics = retrain_step(state, Batch(images, taken.labels))
        return state, {name: sums[name] + metrics[name] for name in sums}

    return step


def start(task: Retraining, seeds: Sequence[int]) -> RetrainState:
    """Returns the state of the seeds before the first step."""
    initialise = partial(initial_retrain_state, task.model, task.optimizer)
    return task.layout.start(initialise, seeds)


def plan_of(task: Retraining) -> loop.Plan:
    """Returns what the epoch loop needs to know of the retraining."""
    config, dataset, layout, steps = task.config, task.dataset, task.layout, task.steps
    train = setup.on_device(Split(dataset.train_images, dataset.train_labels), layout)

    def drop_path(step: jax.Array) -> jax.Array:
        return config.drop_path * (step // steps) / config.num_epochs

    retrain_step = make_retrain_step(
        task.model,
        task.optimizer,
        drop_path=drop_path if config.drop_path else None,
        auxiliary_weight=config.auxiliary_weight,
        label_smoothing=config.label_smoothing,
        parts=config.accumulate,
    )
    test = tester(task)

    def end_epoch(
        run: RunDirectory, state: RetrainState, epoch: int, means: dict[str, float]
    ) -> dict[str, Any]:
        row = {
            "learning_rate": float(task.schedule(epoch * steps)),
            "drop_path": config.drop_path * epoch / config.num_epochs,
        }
        last = epoch + 1 == config.num_epochs
        if last or (config.evaluate_every and (epoch + 1) % config.evaluate_every == 0):
            row |= test(state)
        return row

    def rows(key: jax.Array, epoch: int) -> dict[str, jax.Array]:
        number = len(train.labels)
        return {"train": epoch_batches(key, epoch, number, config.batch_size)}

    crops = {"train": AUGMENT_TRAIN}
    feed = make_feed(
        {"train": train},
        lambda state, epoch: layout.per_seed(rows)(state.key, epoch),
        steps=steps,
        crops=crops if setup.crops_on_host(config, dataset) else None,
        process=process(),
        put=layout.put_part,
    )
    augment = setup.build_augment(config, dataset)
    at_once = steps_at_once(config, dataset.streamed)
    step = compile_steps(
        data_step(retrain_step, augment, steps, layout),
        layout,
        at_once,
        remat=config.model.remat,
    )
    return loop.Plan(
        step=step,
        feed=feed,
        end_epoch=end_epoch,
        metrics=METRICS,
        steps_per_epoch=steps,
        images_per_step=config.batch_size,
        layout=layout,
        at_once=at_once,
    )


def retrain(
    runs: Sequence[RunDirectory], config: Any, interrupt: Interrupt
) -> list[dict[str, Any] | None] | None:
    """Runs, or resumes, the retraining of `config` for the seed of every run in `runs`.

    Returns the contents of their result.json, None for a run that has diverged, or None when a
    signal stopped them (all that was done is saved).

    Raises:
        UserError: the genotype, data or config cannot be used.
    """
    genotype = genotype_of(runs, config)
    if all_stand(runs):
        return [run.result for run in runs]
    dataset = setup.read_dataset(config)
    for run in runs:
        run.bind_data(fingerprint(dataset, test=True))
        if run.leads and run.result is None:
            save(genotype, run.path / "genotype.json")
    kind = Kind(partial(build, config, genotype, dataset), start, plan_of, finish)
    return train(kind, runs, config, interrupt, streamed=dataset.streamed)


def finish(task: Retraining, run: RunDirectory, state: RetrainState) -> None:
    """Writes the result of a run whose last epoch is done."""
    tested = {"epoch": task.config.num_epochs - 1}
    for row in run.rows("metrics"):
        if row.get("epoch") == tested["epoch"]:
            tested |= row
    if "test_accuracy" not in tested:  # the row was lost after the last checkpoint
        tested |= tester(task)(state)
    image_shape = task.dataset.train_images.shape[1:]
    result = {
        "command": "retrain",
        "genotype": task.genotype.to_json(),
        "genotype_name": task.config.genotype,
        **{name: tested[name] for name in tested if name.startswith("test_")},
        "parameters": count_parameters(state.weights),
        "multiply_adds": count_multiply_adds(task.model, image_shape),
        "seconds": sum(row.get("seconds", 0.0) for row in run.rows("timing")),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    run.write_json("result.json", result)


def tester(task: Retraining) -> Callable[[RetrainState], dict[str, float]]:
    """Returns `state -> {"test_loss", "test_accuracy", "test_top5_accuracy"}`."""
    dataset = task.dataset
    evaluate = make_evaluate(
        task.model,
        mean=dataset.mean,
        std=dataset.std,
        batch_size=task.config.batch_size,
        layout=task.layout,
    )

    def test(state: RetrainState) -> dict[str, float]:
        metrics = evaluate(
            state.weights, state.batch_stats, dataset.test_images, dataset.test_labels
        )
        return {f"test_{name}": value for name, value in metrics.items()}

    return test


def evaluate_run(run_path: Path, config: Any) -> dict[str, Any]:
    """Returns the test metrics of the latest checkpoint of a retraining, and its step.

    config: the run's; the data's place may be another.

    Raises:
        UserError: there is no checkpoint, or it is damaged, or the data are others.
    """
    genotype, dataset = (
        load(run_path / "genotype.json"),
        setup.read_dataset(config),
    )
    recorded = read_manifest(run_path).get("data")
    if recorded is not None:
        check_same_data(run_path, recorded, fingerprint(dataset, test=True))
    task = build(config, genotype, dataset, layout=every_device())
    like = jax.eval_shape(
        partial(initial_retrain_state, task.model, task.optimizer), jax.random.key(0)
    )
    sums = {name: jax.ShapeDtypeStruct((), np.float32) for name in METRICS}
    saved, step = checkpoints.restore(
        run_path / "checkpoints", {"state": like, "sums": sums}
    )
    return {"step": step, "epoch": step // task.steps} | tester(task)(saved["state"])
