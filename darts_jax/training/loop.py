"""The epoch loop that searches and retrainings share: steps, rows, checkpoints, resume.

A batch is a function of (seed, epoch, step) and the sums of an unfinished epoch are part of
the checkpoint, so a run that was stopped between any two steps goes on bit for bit.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from darts_jax.errors import UserError
from darts_jax.kernels import allocator
from darts_jax.training import checkpoints, resume
from darts_jax.training.compilation import compiled_together
from darts_jax.training.feed import Feed
from darts_jax.training.interrupt import Interrupt
from darts_jax.training.parallel import Layout, any_process
from darts_jax.training.progress import show_progress
from darts_jax.training.run_directory import RunDirectory
from darts_jax.training.tracing import without_collection

Sums = dict[str, jax.Array]
# How the loop ended: at the last epoch, saved at a signal, or because a run has diverged.
End = Literal["complete", "stopped", "diverged"]


class Plan(NamedTuple):
    """What a kind of run puts into the loop.

    step: `(state, sums, *feed.arguments(order), count) -> (state, sums)`, compiled, with
        state and sums donated: `count` steps, which find their batches by `state.step`.
    feed: where the batches come from.
    end_epoch: `(run, state, epoch, means) -> row` of metrics.jsonl without epoch and step.
    metrics: names of the sums.
    steps_per_epoch, images_per_step: whole numbers, the latter of one run.
    layout: how the state lies on the devices, and whether it is that of several runs.
    at_once: the largest count of a call.
    """

    step: Callable[..., tuple[Any, Sums]]
    feed: Feed
    end_epoch: Callable[[RunDirectory, Any, int, dict[str, float]], dict[str, Any]]
    metrics: tuple[str, ...]
    steps_per_epoch: int
    images_per_step: int
    layout: Layout
    at_once: int = 1


def run_epochs(
    plan: Plan,
    state: Any,
    runs: Sequence[RunDirectory],
    config: Any,
    interrupt: Interrupt,
) -> tuple[Any, End]:
    """Trains to `config.num_epochs` from the runs' latest checkpoint, or from `state`.

    runs: one, or one for each of the seeds that the state stacks; every run gets the rows
        and checkpoints that it would have alone.

    Returns (state, how it ended). A run whose loss is no longer a number says so in its
    `diverged`, and keeps its last good checkpoint; the others are saved at the end of that
    epoch, so that they can go on without it.
    """
    try:
        return _run(plan, state, runs, config, interrupt)
    finally:
        plan.feed.close()


def _run(
    plan: Plan,
    state: Any,
    runs: Sequence[RunDirectory],
    config: Any,
    interrupt: Interrupt,
) -> tuple[Any, End]:
    on_cpu = jax.default_backend() == "cpu"
    state, sums = resume.latest(plan.layout, runs, state, initial_sums(plan))
    done, steps, step = _steps_done(state), plan.steps_per_epoch, None
    save = partial(resume.save, plan.layout, runs, keep=config.keep_checkpoints)
    for run in runs:
        run.truncate_after(done // steps - 1)
    total, every = config.num_epochs * steps, config.log_every_steps
    spent = resume.seconds_before(runs[0], done)
    label = "search" if hasattr(state, "alphas") else "retrain"
    shown = config.progress and runs[0].leads
    with show_progress(label, total, enabled=shown) as progress:
        progress(done, "resumed" if done else "compiling")
        for epoch in range(done // steps, config.num_epochs):
            started = time.perf_counter() - spent
            order = plan.feed.order(state, epoch)
            i = done % steps
            images = (steps - (0 if spent else i)) * plan.images_per_step
            while i < steps:
                count = min(plan.at_once, steps - i, every - done % every)
                arguments = (*plan.feed.arguments(order), np.int32(count))
                if step is None:
                    step, state, sums = _first_call(plan.step, state, sums, arguments)
                else:
                    state, sums = step(state, sums, *arguments)
                if on_cpu:
                    # Steps take seconds there and queue up by the dozen: a signal would be
                    # answered only after all of them.
                    jax.block_until_ready(sums)
                i, done = i + count, done + count
                logging = done % every == 0 and i < steps
                if i < steps and _stops(interrupt, logging):
                    if not _mark_diverged(_means(plan, sums, i), epoch, runs):
                        save(done, state, sums)
                        resume.note_seconds(runs, done, time.perf_counter() - started)
                        return state, "stopped"
                    # Not saved: the others go on without it from the end of an epoch.
                    return state, "stopped" if _sound(runs) else "diverged"
                if logging:
                    progress(done, _text(epoch, _means(plan, sums, i), config))
            means = _means(plan, sums, steps)
            _mark_diverged(means, epoch, runs)
            seconds = time.perf_counter() - started
            rows = _rows(plan, runs, state, means, epoch, done)
            diverged = _mark_diverged(rows, epoch, runs)
            for run, row in zip(runs, rows, strict=True):
                if not run.diverged:
                    _write(run, row, seconds, images)
            sums, spent = initial_sums(plan), 0.0
            stop = _stops(interrupt, True)  # once: it may come between two questions
            due = done == total or (epoch + 1) % config.checkpoint_every == 0
            if stop or due or diverged:
                save(done, state, sums)
            progress(done, _text(epoch, means, config), end_of_epoch=True)
            if diverged:
                return state, "stopped" if stop and _sound(runs) else "diverged"
            if stop and done < total:
                return state, "stopped"
    return state, "complete"


def _first_call(
    step: Any, state: Any, sums: Sums, arguments: tuple[Any, ...]
) -> tuple[Any, Any, Sums]:
    """Compiles the step and runs it once; returns (compiled step, state, sums)."""
    on_cpu = jax.default_backend() == "cpu"
    with without_collection():
        compiled = compiled_together(step, state, sums, *arguments)
        if on_cpu:
            allocator.return_freed_memory()
        state, sums = compiled(state, sums, *arguments)
    if on_cpu:  # what lies between the first step's arrays, too
        jax.block_until_ready(sums)
        allocator.return_freed_memory()
    return compiled, state, sums


def _rows(
    plan: Plan,
    runs: Sequence[RunDirectory],
    state: Any,
    means: Sequence[dict[str, float]],
    epoch: int,
    step: int,
) -> list[dict[str, Any]]:
    """Returns the row of metrics.jsonl of every run, an empty one of those that diverged."""
    rows: list[dict[str, Any]] = []
    members = plan.layout.members(state)
    for run, member, its in zip(runs, members, means, strict=True):
        row: dict[str, Any] = {}
        if not run.diverged:
            row = {"epoch": epoch, "step": step} | its
            try:
                row |= plan.end_epoch(run, member, epoch, its)
            except UserError as error:  # no cell can be derived from what is no number
                run.diverged = str(error)
        rows.append(row)
    return rows


def _steps_done(state: Any) -> int:
    """Returns the state's step; stacked runs are all at the same."""
    return int(state.step if state.step.ndim == 0 else state.step[0])


def _stops(interrupt: Interrupt, together: bool) -> bool:
    """Whether a signal came, here or, where all processes ask together, to any of them."""
    if jax.process_count() == 1:
        return bool(interrupt)
    return together and any_process(bool(interrupt))


def initial_sums(plan: Plan) -> Sums:
    """Returns the sums before the first step of an epoch, `[]` or, of S runs, `[S]`."""
    shape = (plan.layout.seeds,) if plan.layout.seeds else ()
    zeros = {name: jnp.zeros(shape, jnp.float32) for name in plan.metrics}
    return plan.layout.put(zeros)


def _means(plan: Plan, sums: Sums, steps: int) -> list[dict[str, float]]:
    """Returns the mean of every metric over `steps` steps, a dict a run."""
    return [
        {name: float(value) / steps for name, value in its.items()}
        for its in plan.layout.members(sums)
    ]


def _write(run: RunDirectory, row: dict[str, Any], seconds: float, images: int) -> None:
    run.append("metrics", row)
    rate = images / max(seconds, 1e-9)
    timing = {"epoch": row["epoch"], "seconds": seconds, "images_per_second": rate}
    run.append("timing", timing)
    numbers = {k: v for k, v in row.items() if isinstance(v, (int, float))}
    numbers |= {"images_per_second": rate}
    run.tensorboard.scalars(
        row["step"], {k: v for k, v in numbers.items() if k != "step"}
    )


def _mark_diverged(
    rows: Sequence[Mapping[str, Any]], epoch: int, runs: Sequence[RunDirectory]
) -> bool:
    """Notes in its run that a number is none any more; returns whether any run has one."""
    for run, its in zip(runs, rows, strict=True):
        for name, value in its.items():
            if run.diverged or not isinstance(value, float) or math.isfinite(value):
                continue
            last = checkpoints.latest_step(run.checkpoints)
            kept = "none was saved yet" if last is None else f"step {last} is kept"
            run.diverged = (
                f"{name} is {value} in epoch {epoch}: training diverged; of the "
                f"checkpoints {kept}"
            )
    return any(run.diverged for run in runs)


def _sound(runs: Sequence[RunDirectory]) -> bool:
    """Whether any of the runs has not diverged."""
    return not all(run.diverged for run in runs)


def _text(epoch: int, means: list[dict[str, float]], config: Any) -> str:
    """Returns the progress line; of several runs it shows the means."""
    shown = ", ".join(
        f"{name.replace('_', ' ')} {sum(its[name] for its in means) / len(means):.3f}"
        for name in means[0]
    )
    return f"epoch {epoch + 1}/{config.num_epochs}: {shown}"
