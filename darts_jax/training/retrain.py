"""A whole retraining: a genotype's network from scratch, tested at the end."""

import time
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from darts_jax.data import Dataset, Split, epoch_batches
from darts_jax.genotype import Genotype, load_genotype, save
from darts_jax.models import count_multiply_adds, count_parameters, make_network
from darts_jax.spaces import random_genotype
from darts_jax.training import checkpoints, loop, setup
from darts_jax.training.evaluation import make_evaluate
from darts_jax.training.feed import Feed, make_feed, take
from darts_jax.training.interrupt import Interrupt
from darts_jax.training.randomness import AUGMENT_TRAIN, step_key
from darts_jax.training.retrain_step import (
    RetrainStep,
    initial_retrain_state,
    make_retrain_step,
)
from darts_jax.training.run_directory import RunDirectory
from darts_jax.types import Batch, Model, RetrainState

METRICS = ("train_loss", "train_accuracy")


def choose_genotype(config: Any) -> Genotype:
    """Returns the genotype that `config.genotype` names, or draws the random one.

    Raises:
        UserError: as `genotype.load_genotype` does.
    """
    if config.genotype == "random":
        rng = np.random.default_rng(config.genotype_seed)
        return random_genotype(setup.build_space(config), rng)
    return load_genotype(config.genotype)


class Retraining(NamedTuple):
    """A network and what trains it; enough to test a checkpoint again."""

    genotype: Genotype
    dataset: Dataset
    model: Model
    schedule: Any
    optimizer: Any
    steps: int


def build(config: Any, genotype: Genotype) -> Retraining:
    """Returns the retraining of `genotype` that `config` describes.

    Raises:
        UserError: the data or the config cannot be used.
    """
    dataset = setup.read_dataset(config)
    number = len(dataset.train_labels)
    steps = setup.steps_per_epoch(config.batch_size, number, "training")
    model = make_network(
        genotype,
        image_shape=dataset.train_images.shape[1:],
        num_classes=dataset.num_classes,
        num_cells=config.model.num_cells,
        channels=config.model.channels,
        stem_multiplier=config.model.stem_multiplier,
        stem=config.model.stem,
        auxiliary=config.model.auxiliary,
    )
    schedule = setup.build_schedule(config, steps)
    optimizer = setup.build_weight_optimizer(config, schedule)
    return Retraining(genotype, dataset, model, schedule, optimizer, steps)


def data_step(retrain_step: RetrainStep, feed: Feed, augment: Any, steps: int) -> Any:
    """Returns the compiled `(state, sums, order) -> (state, sums)` of the loop.

    feed: of the part "train".
    """

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(
        state: RetrainState, sums: loop.Sums, order: Any, data: Any
    ) -> tuple[RetrainState, loop.Sums]:
        epoch, i = state.step // steps, state.step % steps
        key = step_key(state.key, AUGMENT_TRAIN, epoch, i)
        taken = take(data["train"], order and order["train"], i)
        images = augment(key, taken.images)
        state, metrics = retrain_step(state, Batch(images, taken.labels))
        return state, {name: sums[name] + metrics[name] for name in sums}

    return lambda state, sums, order: step(state, sums, *feed.arguments(order))


def plan_of(task: Retraining, config: Any) -> loop.Plan:
    """Returns what the epoch loop needs to know of the retraining."""
    dataset, steps = task.dataset, task.steps
    train = setup.on_device(Split(dataset.train_images, dataset.train_labels))

    def drop_path(step: jax.Array) -> jax.Array:
        return config.drop_path * (step // steps) / config.num_epochs

    retrain_step = make_retrain_step(
        task.model,
        task.optimizer,
        drop_path=drop_path if config.drop_path else None,
        auxiliary_weight=config.auxiliary_weight,
        label_smoothing=config.label_smoothing,
    )
    test = tester(task, config.batch_size)

    def end_epoch(
        state: RetrainState, epoch: int, means: dict[str, float]
    ) -> dict[str, Any]:
        row = {
            "learning_rate": float(task.schedule(epoch * steps)),
            "drop_path": config.drop_path * epoch / config.num_epochs,
        }
        last = epoch + 1 == config.num_epochs
        if last or (config.evaluate_every and (epoch + 1) % config.evaluate_every == 0):
            row |= test(state)
        return row

    def order(state: RetrainState, epoch: int) -> dict[str, jax.Array]:
        number = len(train.labels)
        return {"train": epoch_batches(state.key, epoch, number, config.batch_size)}

    crops = {"train": AUGMENT_TRAIN}
    feed = make_feed(
        {"train": train},
        order,
        steps=steps,
        crops=crops if setup.crops_on_host(config, dataset) else None,
    )
    augment = setup.build_augment(config, dataset)
    return loop.Plan(
        step=data_step(retrain_step, feed, augment, steps),
        order=feed.order,
        end_epoch=end_epoch,
        metrics=METRICS,
        steps_per_epoch=steps,
        images_per_step=config.batch_size,
        close=feed.close,
    )


def retrain(run: RunDirectory, config: Any, interrupt: Interrupt) -> dict | None:
    """Runs, or resumes, the retraining of `config` in `run`.

    Returns the content of result.json, or None when a signal stopped the run (it is saved).

    Raises:
        UserError: the genotype, data or config cannot be used, or training diverges.
    """
    if run.result is not None:
        return run.result
    stored = run.path / "genotype.json"
    genotype = (
        load_genotype(str(stored)) if stored.exists() else choose_genotype(config)
    )
    task = build(config, genotype)
    save(genotype, stored)
    initialise = jax.jit(partial(initial_retrain_state, task.model, task.optimizer))
    state = initialise(jax.random.key(config.seed))
    plan = plan_of(task, config)
    state, complete = loop.run_epochs(plan, state, run, config, interrupt)
    if not complete:
        return None
    metrics = run.rows("metrics")[-1]
    image_shape = task.dataset.train_images.shape[1:]
    result = {
        "command": "retrain",
        "genotype": genotype.to_json(),
        "genotype_name": config.genotype,
        **{name: metrics[name] for name in metrics if name.startswith("test_")},
        "parameters": count_parameters(state.weights),
        "multiply_adds": count_multiply_adds(task.model, image_shape),
        "seconds": sum(row["seconds"] for row in run.rows("timing")),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    run.write_json("result.json", result)
    return result


def tester(retraining: Retraining, batch_size: int) -> Any:
    """Returns `state -> {"test_loss", "test_accuracy", "test_top5_accuracy"}`."""
    dataset = retraining.dataset
    evaluate = make_evaluate(
        retraining.model, mean=dataset.mean, std=dataset.std, batch_size=batch_size
    )

    def test(state: RetrainState) -> dict[str, float]:
        metrics = evaluate(
            state.weights, state.batch_stats, dataset.test_images, dataset.test_labels
        )
        return {f"test_{name}": value for name, value in metrics.items()}

    return test


def evaluate_run(run_path: Any, config: Any) -> dict[str, Any]:
    """Returns the test metrics of the latest checkpoint of a retraining, and its step.

    Raises:
        UserError: there is no checkpoint, or it is damaged.
    """
    genotype = load_genotype(str(run_path / "genotype.json"))
    retraining = build(config, genotype)
    like = jax.eval_shape(
        partial(initial_retrain_state, retraining.model, retraining.optimizer),
        jax.random.key(0),
    )
    sums = {name: jax.ShapeDtypeStruct((), np.float32) for name in METRICS}
    saved, step = checkpoints.restore(
        run_path / "checkpoints", {"state": like, "sums": sums}
    )
    test = tester(retraining, config.batch_size)(saved["state"])
    return {"step": step, "epoch": step // retraining.steps} | test
