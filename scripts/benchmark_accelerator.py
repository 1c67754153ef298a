#!/usr/bin/env python
"""Measures many choices of workload, implementation, precision and seeds side by side.

    python scripts/benchmark_accelerator.py --json=FILE [--size=paper] [--ready=SECONDS]
        [--rounds=10] [--choices=NAME,...] [--repeat=NAME,...] [--profile=NAME,...]

For accelerators, where compiling a supernet takes minutes of one core and a step takes
milliseconds: every choice is made ready in a process of its own, all at once, then their steps
are timed in turns. What is not ready in time is left out and named. `--repeat` says of some of
them whether the same steps again, from the same state, end at the same losses to the last bit;
`--profile` adds the kernels of a step, with their times. PyTorch is measured too where it is
installed and sees the device.
"""

import importlib.util
import pathlib
import shlex
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from darts_jax.benchmark import measure  # noqa: E402
from darts_jax.benchmark.floors import floor_bytes  # noqa: E402
from darts_jax.benchmark.pipe import Worker, WorkerError, started  # noqa: E402
from darts_jax.benchmark.sizes import (  # noqa: E402
    SECOND,
    Variant,
    images_per_step,
    size_named,
)
from darts_jax.commands import compilation_cache, flags, xla_flags  # noqa: E402
from darts_jax.errors import UserError, unknown  # noqa: E402
from darts_jax.training.records import write_json  # noqa: E402

FIRST, EXACT, RETRAIN = (
    "search_step_first_order",
    "search_step_unrolled",
    "retrain_step",
)
FLAGS: dict[str, str | bool | None] = {
    "json": "",
    "size": "paper",
    "ready": "600",
    "rounds": "10",
    "choices": "",
    "repeat": "",
    "profile": "",
}
STEPS = 5  # a round: the device is not waited for between them


class Choice(NamedTuple):
    """A workload and how it is computed; variant None: by PyTorch."""

    workload: str
    variant: Variant | None


CHOICES: dict[str, Choice] = {
    "plain": Choice(FIRST, Variant("plain")),
    "plain_bfloat16": Choice(FIRST, Variant("plain", "bfloat16")),
    "merged": Choice(FIRST, Variant("merged")),
    "merged_bfloat16": Choice(FIRST, Variant("merged", "bfloat16")),
    "torch": Choice(FIRST, None),
    "plain_retrain": Choice(RETRAIN, Variant("plain")),
    "plain_bfloat16_retrain": Choice(RETRAIN, Variant("plain", "bfloat16")),
    "merged_bfloat16_retrain": Choice(RETRAIN, Variant("merged", "bfloat16")),
    "torch_retrain": Choice(RETRAIN, None),
    "plain_4seeds": Choice(FIRST, Variant("plain", "float32", 4)),
    "plain_bfloat16_4seeds": Choice(FIRST, Variant("plain", "bfloat16", 4)),
    "merged_bfloat16_4seeds": Choice(FIRST, Variant("merged", "bfloat16", 4)),
    "merged_finite_difference": Choice(SECOND, Variant("merged")),
    "merged_bfloat16_exact": Choice(EXACT, Variant("merged", "bfloat16")),
    "torch_finite_difference": Choice(SECOND, None),
}


def command_of(choice: Choice) -> tuple[str, ...]:
    """Returns what starts the worker of a choice."""
    if choice.variant is None:
        return (sys.executable, str(ROOT / "benchmarks" / "torch_supernet.py"))
    return measure.OUR_COMMAND


def prepared(worker: Worker, size: str, choice: Choice, backend: str) -> dict[str, Any]:
    """Makes a worker ready and runs a first step; returns the seconds of both."""
    if choice.variant is None:
        answer = worker.ask("accept", backend=backend)
        if "refused" in answer:
            return {"failed": answer["refused"]}
        extra: dict[str, Any] = {"backend": backend}
    else:
        answer, extra = {}, {"variant": choice.variant._asdict()}
    found = worker.ask("prepare", size=size, workload=choice.workload, **extra)
    return answer | found | {"first_step_s": worker.ask("step")["seconds"]}


def all_prepared(
    workers: Mapping[str, Worker], size: str, backend: str, seconds: float
) -> dict[str, dict[str, Any]]:
    """Returns {choice: what `prepared` found, or {"failed": why}}, after `seconds` at most."""
    start = time.perf_counter()
    pool = ThreadPoolExecutor(len(workers))
    futures: dict[str, Future] = {}
    for name, worker in workers.items():
        futures[name] = pool.submit(prepared, worker, size, CHOICES[name], backend)
        futures[name].add_done_callback(
            lambda _, name=name: say(f"{time.perf_counter() - start:.0f} s: {name}")
        )
    wait(futures.values(), timeout=seconds)
    found: dict[str, dict[str, Any]] = {}
    for name, future in futures.items():
        if not future.done():
            workers[name].process.kill()
            found[name] = {"failed": f"not ready in {seconds:.0f} s"}
            continue
        try:
            found[name] = future.result()
        except WorkerError as error:
            found[name] = {"failed": error.reason}
    pool.shutdown()
    return found


def timed(
    workers: Mapping[str, Worker], size: str, rounds: int
) -> dict[str, dict[str, Any]]:
    """Returns the figures of all choices, whose steps take turns; or {"failed": why}."""
    replies: dict[str, list[dict]] = {name: [] for name in workers}
    found: dict[str, dict[str, Any]] = {}
    for i in range(-1, rounds):  # the first round is not counted
        for name in list(replies)[:: -1 if i % 2 else 1]:
            try:
                reply = workers[name].ask("step", count=STEPS)
            except WorkerError as error:
                found[name] = {"failed": error.reason}
                del replies[name]
                continue
            if i >= 0:
                replies[name].append(reply)
    for name, its in replies.items():
        variant = CHOICES[name].variant or Variant()
        images = images_per_step(size_named(size), CHOICES[name].workload)
        seconds = [reply["seconds"] for reply in its]
        median = statistics.median(seconds)
        found[name] = workers[name].ask("peak") | {
            "steps_s": seconds,
            "median_s": median,
            "images_per_second": images * variant.seeds / median,
            "train_losses": [reply["train_loss"] for reply in its],
        }
    return found


def repeated(
    worker: Worker, size: str, choice: Choice, backend: str, rounds: int
) -> dict[str, Any]:
    """Runs what `timed` did from the initial state again; the losses, or {"failed": why}."""
    try:
        prepared(worker, size, choice, backend)
        replies = [worker.ask("step", count=STEPS) for _ in range(rounds + 1)]
    except WorkerError as error:
        return {"failed": error.reason}
    return {"train_losses": [reply["train_loss"] for reply in replies[1:]]}


def say(line: str) -> None:
    """Prints a line at once."""
    print(line, flush=True)


def table(choices: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns a line a choice."""
    lines = [
        f"{'':34} {'step ms':>8} {'img/s':>7} {'peak MiB':>8} {'GB':>6} {'floor %':>7} "
        f"{'trace s':>7} {'compile s':>9}"
    ]
    for name, its in choices.items():
        if "failed" in its:
            lines.append(f"{name:34} {its['failed']}")
            continue
        line = (
            f"{name:34} {its['median_s'] * 1e3:8.1f} {its['images_per_second']:7.0f} "
        )
        line += f"{(its['peak_device_bytes'] or 0) / 2**20:8.0f}"
        if CHOICES[name].variant:
            line += f" {(its['bytes_accessed'] or 0) / 1e9:6.1f} "
            line += f"{its['share_of_floor'] * 100:7.1f} "
            line += f"{its['trace_s']:7.1f} {its['compile_s']:9.1f}"
        lines.append(line)
    return lines


def named(given: str) -> list[str]:
    """Returns the choices in a list of names; raises UserError for an unknown one."""
    names = [word for word in given.split(",") if word]
    for name in names:
        if name not in CHOICES:
            raise unknown("choice", name, CHOICES)
    return names


def chosen(given: str) -> list[str]:
    """Returns the choices to measure; raises UserError for an unknown name."""
    names = named(given) or list(CHOICES)
    if importlib.util.find_spec("torch") is None:
        names = [name for name in names if CHOICES[name].variant]
    return names


def main(argv: Sequence[str]) -> int:
    """Measures, prints a table, writes the record."""
    given = flags.parse(argv, FLAGS).flags
    size, names = str(given["size"]), chosen(str(given["choices"]))
    again, watched = (
        [name for name in named(str(given[flag])) if name in names]
        for flag in ("repeat", "profile")
    )
    if not given["json"]:
        raise UserError("name the record: --json=FILE")
    for flag in ("ready", "rounds"):
        if not str(given[flag]).isdecimal() or not int(str(given[flag])):
            raise UserError(f"--{flag}={given[flag]}: expected a whole number above 0")
    compilation_cache.turn_on()
    xla_flags.set_defaults()
    hardware = measure.survey([])
    record: dict[str, Any] = {
        "command": shlex.join(["scripts/benchmark_accelerator.py", *argv]),
        "size": size_named(size)._asdict(),
        **hardware,
        "definitions": {
            "median_s": f"seconds of a step: rounds of {STEPS} steps without a wait between "
            "them, the choices in turns",
            "trace_s, compile_s": "while all choices are made ready at the same time",
            "bandwidth_bytes_per_second": "read and written by x + 1 in place",
            "share_of_floor": "of darts_jax/benchmark/floors.py, over median_s",
        },
    }
    environment = measure.environment()
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(started(command_of(CHOICES[name]), environment))
            for name in names
        }
        limit, rounds = float(str(given["ready"])), int(str(given["rounds"]))
        choices = all_prepared(workers, size, hardware["backend"], limit)
        record["choices"] = choices
        write_json(pathlib.Path(str(given["json"])), record)
        workers = {n: w for n, w in workers.items() if "failed" not in choices[n]}
        if not workers:
            say("\n".join(table(choices)))
            return 1
        for name, figures in timed(workers, size, rounds).items():
            choices[name] |= figures
        ours = {
            name: worker
            for name, worker in workers.items()
            if CHOICES[name].variant and "failed" not in choices[name]
        }
        for worker in list(ours.values())[:1]:
            copied = worker.ask("bandwidth", copy_bytes=size_named(size).copy_bytes)
            record["bandwidth_bytes_per_second"] = copied["bytes_per_second"]
        for name in ours:
            workload, variant = CHOICES[name]
            floor = floor_bytes(size_named(size), workload, variant)
            seconds = floor / copied["bytes_per_second"]
            share = seconds / choices[name]["median_s"]
            choices[name] |= {"floor_bytes": floor, "share_of_floor": share}
        write_json(pathlib.Path(str(given["json"])), record)
        say("\n".join(table(choices)))
        for name in filter(ours.__contains__, again):
            found = repeated(
                ours[name], size, CHOICES[name], hardware["backend"], rounds
            )
            if "failed" not in found:
                same = found["train_losses"] == choices[name]["train_losses"]
                say(f"{name}: {'the same' if same else 'other'} losses again")
            choices[name]["again"] = found
        for name in filter(ours.__contains__, watched):
            try:
                choices[name]["profile"] = ours[name].ask("profile")
            except WorkerError as error:
                choices[name]["profile"] = {"failed": error.reason}
    write_json(pathlib.Path(str(given["json"])), record)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
