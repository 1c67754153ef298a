"""The epoch loop that searches and retrainings share: steps, rows, checkpoints, resume.

A batch is a function of (seed, epoch, step) and the sums of an unfinished epoch are part of
the checkpoint, so a run that was stopped between any two steps goes on bit for bit.
"""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from darts_jax.errors import UserError
from darts_jax.training import checkpoints
from darts_jax.training.interrupt import Interrupt
from darts_jax.training.progress import show_progress
from darts_jax.training.run_directory import RunDirectory

Sums = dict[str, jax.Array]


class Plan(NamedTuple):
    """What a kind of run puts into the loop.

    step: `(state, sums, order) -> (state, sums)`, compiled, with state and sums donated;
        it reads its batch from `order` by `state.step`.
    order: (state, epoch) -> the rows of the data that make each batch of that epoch, on
        the device; or where the data is streamed, its batches from `state.step` on.
    end_epoch: `(state, epoch, means) -> row` of metrics.jsonl without epoch and step.
    metrics: names of the sums.
    steps_per_epoch, images_per_step: whole numbers.
    close: called at the end, however it comes: ends what `order` has begun.
    """

    step: Callable[[Any, Sums, Any], tuple[Any, Sums]]
    order: Callable[[Any, int], Any]
    end_epoch: Callable[[Any, int, dict[str, float]], dict[str, Any]]
    metrics: tuple[str, ...]
    steps_per_epoch: int
    images_per_step: int
    close: Callable[[], None] = lambda: None


def run_epochs(
    plan: Plan, state: Any, run: RunDirectory, config: Any, interrupt: Interrupt
) -> tuple[Any, bool]:
    """Trains to `config.num_epochs` from the run's latest checkpoint, or from `state`.

    Returns (state, whether the run is complete); it is not when a signal came, and then the
    state is saved.

    Raises:
        UserError: the loss is no longer a number; the last good checkpoint is kept.
    """
    try:
        return _run(plan, state, run, config, interrupt)
    finally:
        plan.close()


def _run(
    plan: Plan, state: Any, run: RunDirectory, config: Any, interrupt: Interrupt
) -> tuple[Any, bool]:
    sums, on_cpu = _no_sums(plan), jax.default_backend() == "cpu"
    if run.resumed and checkpoints.latest_step(run.checkpoints) is not None:
        saved, _ = checkpoints.restore(run.checkpoints, {"state": state, "sums": sums})
        state, sums = saved["state"], saved["sums"]
    done, steps = int(state.step), plan.steps_per_epoch
    run.truncate_after(done // steps - 1)
    total = config.num_epochs * steps
    label = "search" if hasattr(state, "alphas") else "retrain"
    with show_progress(label, total, enabled=config.progress) as progress:
        progress(done, "resumed" if done else "compiling")
        for epoch in range(done // steps, config.num_epochs):
            started = time.perf_counter()
            order = plan.order(state, epoch)
            first = done % steps
            for i in range(first, steps):
                state, sums = plan.step(state, sums, order)
                if on_cpu:
                    # Steps take seconds there and queue up by the dozen: a signal would be
                    # answered only after all of them.
                    jax.block_until_ready(sums)
                done += 1
                if interrupt and i + 1 < steps:
                    _check_finite(_means(sums, i + 1), epoch, run)
                    _save(run, config, done, state, sums)
                    return state, False
                if done % config.log_every_steps == 0 and i + 1 < steps:
                    progress(done, _text(epoch, _means(sums, i + 1), config))
            means = _means(sums, steps)
            _check_finite(means, epoch, run)
            seconds = time.perf_counter() - started
            row = {"epoch": epoch, "step": done} | means
            row |= plan.end_epoch(state, epoch, means)
            _write(run, row, seconds, (steps - first) * plan.images_per_step)
            sums = _no_sums(plan)
            stop = bool(interrupt)  # once: it may come between the two questions
            if stop or done == total or (epoch + 1) % config.checkpoint_every == 0:
                _save(run, config, done, state, sums)
            progress(done, _text(epoch, means, config), end_of_epoch=True)
            if stop and done < total:
                return state, False
    return state, True


def _no_sums(plan: Plan) -> Sums:
    return {name: jnp.zeros((), jnp.float32) for name in plan.metrics}


def _means(sums: Sums, steps: int) -> dict[str, float]:
    return {name: float(value) / steps for name, value in sums.items()}


def _save(run: RunDirectory, config: Any, step: int, state: Any, sums: Sums) -> None:
    tree = {"state": state, "sums": sums}
    checkpoints.save(run.checkpoints, step, tree, keep=config.keep_checkpoints)


def _write(run: RunDirectory, row: dict[str, Any], seconds: float, images: int) -> None:
    run.append("metrics", row)
    rate = images / max(seconds, 1e-9)
    timing = {"epoch": row["epoch"], "seconds": seconds, "images_per_second": rate}
    run.append("timing", timing)
    numbers = {k: v for k, v in row.items() if isinstance(v, (int, float))}
    numbers |= {"images_per_second": rate}
    run.scalars(row["step"], {k: v for k, v in numbers.items() if k != "step"})


def _check_finite(means: dict[str, float], epoch: int, run: RunDirectory) -> None:
    for name, value in means.items():
        if not math.isfinite(value):
            last = checkpoints.latest_step(run.checkpoints)
            kept = "none was saved yet" if last is None else f"step {last} is kept"
            raise UserError(
                f"{name} is {value} in epoch {epoch}: training diverged; of the "
                f"checkpoints {kept}; a smaller weights.learning_rate may help"
            )


def _text(epoch: int, means: dict[str, float], config: Any) -> str:
    shown = ", ".join(
        f"{name.replace('_', ' ')} {value:.3f}" for name, value in means.items()
    )
    return f"epoch {epoch + 1}/{config.num_epochs}: {shown}"
