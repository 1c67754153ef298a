"""One workload measured: ours cold, then ours and a baseline warm, step by step in turn."""

import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import darts_jax
from darts_jax.benchmark.floors import floor_bytes
from darts_jax.benchmark.pipe import Worker, WorkerError, started
from darts_jax.benchmark.sizes import (
    WORKLOADS,
    Variant,
    images_per_step,
    size_named,
)
from darts_jax.errors import UserError

OURS = "jax"
OUR_COMMAND = (sys.executable, "-m", "darts_jax.benchmark.worker")
STAGES = ("kernels", "init", "trace", "compile")
Say = Callable[[str], None]


class Baseline(NamedTuple):
    """Another implementation: the command that serves as ours does.

    optional: it may fail, which then stands in the record, and the rest goes on.
    """

    name: str
    command: tuple[str, ...]
    optional: bool = False


class Run(NamedTuple):
    """What all workloads of a run share.

    size: a name in SIZES.
    variant: of our side.
    backend: what ours runs on, as `survey` found it.
    baselines: what to compare with.
    steps: timed steps of each, after one that is not counted.
    say: told of every stage.
    devices: how ours uses them, a name in `programs.PROGRAMS`.
    """

    size: str
    variant: Variant
    backend: str
    baselines: Sequence[Baseline]
    steps: int
    say: Say
    devices: str = "one"

    @property
    def command(self) -> tuple[str, ...]:
        """Starts our side."""
        return (*OUR_COMMAND, self.devices)


def environment(cache: str | None = None) -> dict[str, str]:
    """Returns a worker's environment.

    Args:
        cache: a fresh folder for compiled programs and kernels; None: the user's own.
    """
    found = dict(os.environ)
    root = str(Path(darts_jax.__file__).resolve().parents[1])
    found["PYTHONPATH"] = os.pathsep.join(
        path for path in (root, found.get("PYTHONPATH", "")) if path
    )
    if cache is not None:
        found["JAX_COMPILATION_CACHE_DIR"] = found["DARTS_JAX_CACHE"] = cache
    # Two frameworks share a GPU here: neither may take its memory in advance.
    found.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    return found


def survey(baselines: Sequence[Baseline]) -> dict[str, Any]:
    """Returns versions, devices and machine; asks the baselines whether they run there.

    Raises:
        UserError: a baseline does not.
    """
    with started(OUR_COMMAND, environment()) as worker:
        hardware = worker.ask("describe")
    for side in baselines:
        with started(side.command, environment()) as worker:
            answer = worker.ask("accept", backend=hardware["backend"])
        if "refused" in answer:
            raise UserError(f"--baseline {side.name}: {answer['refused']}")
        hardware["versions"] |= answer["versions"]
    return hardware


def compile_only(size: str, workload: str, variant: Variant) -> str:
    """Compiles a workload into the user's compilation cache; returns a line of seconds."""
    with started(OUR_COMMAND, environment()) as worker:
        prepared = worker.ask(
            "prepare", size=size, workload=workload, variant=variant._asdict()
        )
    return f"{workload}: {_start_up(prepared)}"


def _start_up(prepared: Mapping[str, Any]) -> str:
    seconds = {name: f"{prepared[f'{name}_s']:.1f} s" for name in STAGES}
    return ", ".join(f"{name} {value}" for name, value in seconds.items())


def measure(run: Run, workload: str) -> dict[str, dict[str, Any]]:
    """Returns what was measured of one workload, {implementation: its figures}.

    First ours starts with empty caches (`cold`); then it starts again with those caches,
    beside the baselines, and their steps alternate while all of them are warm.

    Raises:
        WorkerError: a process ended too soon.
    """
    with tempfile.TemporaryDirectory(prefix="darts_jax_benchmark_") as cache:
        with started(run.command, environment(cache)) as worker:
            cold = worker.ask("prepare", **_request(run, workload, OURS))
            run.say(f"{workload}: {_start_up(cold)}, with empty caches")
            cold |= worker.ask("reset_peak")
            cold["first_step_s"] = worker.ask("step")["seconds"]
            cold |= worker.ask("peak")
            copy_bytes = size_named(run.size).copy_bytes
            copied = worker.ask("bandwidth", copy_bytes=copy_bytes)
        entry = _alternate(run, workload, environment(cache))
    ours = entry[OURS]
    ours["cold"], ours["bandwidth_bytes_per_second"] = cold, copied["bytes_per_second"]
    ours |= _share_of_floor(run, workload, ours)
    medians = [
        f"{k} {v['median_s']:.4f} s" for k, v in entry.items() if "median_s" in v
    ]
    run.say(f"{workload}: median step: {', '.join(medians)}")
    return entry


def _share_of_floor(run: Run, workload: str, ours: Mapping[str, Any]) -> dict[str, Any]:
    floor = floor_bytes(size_named(run.size), workload, run.variant)
    seconds = floor / ours["bandwidth_bytes_per_second"]
    return {
        "floor_bytes": floor,
        "floor_s": seconds,
        "share_of_floor": seconds / ours["median_s"],
    }


def _request(run: Run, workload: str, name: str) -> dict[str, Any]:
    """Returns what an implementation needs to prepare a workload, or what stands for it."""
    extra: dict[str, Any] = {}
    if name != OURS:
        workload = WORKLOADS[workload].baseline or workload
        extra["backend"] = run.backend
    if name in (OURS, "pmap"):
        extra["variant"] = run.variant._asdict()
    return {"size": run.size, "workload": workload, **extra}


def _alternate(
    run: Run, workload: str, variables: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Runs all implementations side by side, a step of each in turn."""
    entry: dict[str, dict[str, Any]] = {}
    workers: dict[str, Worker] = {}
    sides = (Baseline(OURS, run.command), *run.baselines)
    optional = {side.name for side in sides if side.optional}

    def tolerate(name: str, error: WorkerError) -> None:
        if name not in optional:
            raise error
        entry[name] = {"failed": error.reason}
        workers.pop(name, None)
        run.say(f"{workload}: {name} failed: {error.reason}")

    with ExitStack() as stack:
        for name, command, _ in sides:
            worker = stack.enter_context(started(command, variables))
            try:
                entry[name] = _warmed_up(worker, _request(run, workload, name))
            except WorkerError as error:
                tolerate(name, error)
            else:
                workers[name] = worker
                run.say(f"{workload}: {name} is ready")
        replies: dict[str, list[dict]] = {name: [] for name in workers}
        for i in range(run.steps):
            # Each goes first as often as last.
            for name in list(workers)[:: -1 if i % 2 else 1]:
                try:
                    replies[name].append(workers[name].ask("step"))
                except WorkerError as error:
                    tolerate(name, error)
        images = images_per_step(size_named(run.size), workload)
        images *= run.variant.seeds  # 1 where there is a baseline
        for name, worker in list(workers.items()):
            try:
                entry[name] |= worker.ask("peak") | _summary(replies[name], images)
            except WorkerError as error:
                tolerate(name, error)
    return entry


def _warmed_up(worker: Worker, request: dict[str, Any]) -> dict[str, Any]:
    """Prepares a worker and runs one step; returns the seconds of both."""
    prepared = worker.ask("prepare", **request)
    first = worker.ask("step")["seconds"]
    reset = worker.ask("reset_peak")["reset"]
    return {
        "workload": request["workload"],
        **prepared,
        "first_step_s": first,
        "peak_is_of": "steps" if reset else "process",
    }


def _summary(replies: Sequence[Mapping[str, float]], images: int) -> dict[str, Any]:
    seconds = [reply["seconds"] for reply in replies]
    median = statistics.median(seconds)
    return {
        "steps_s": seconds,
        "median_s": median,
        "min_s": min(seconds),
        "count": len(seconds),
        "images_per_step": images,
        "images_per_second": images / median,
        "train_losses": [reply["train_loss"] for reply in replies],
    }
