"""The runs of several seeds: a folder each, trained in one program or one after another.

Every folder is a run like any other, with its own config, metrics, genotype and result, so
that a report shows their mean and spread and each can be resumed alone.
"""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax

from darts_jax.errors import UserError
from darts_jax.training.interrupt import Interrupt
from darts_jax.training.loop import Plan, run_epochs
from darts_jax.training.parallel import any_process, leads
from darts_jax.training.resume import shared_steps
from darts_jax.training.run_directory import RunDirectory, follow_run, open_run


def folders(workdir: Path, config: Mapping[str, Any]) -> dict[Path, dict[str, Any]]:
    """Returns {run directory: its config}: `workdir`, or `workdir/seedN` for many seeds.

    Raises:
        UserError: `workdir` holds a single run, and the config asks for several.
    """
    if config["num_seeds"] == 1:
        return {workdir: dict(config)}
    if (workdir / "config.json").exists():
        raise UserError(
            f"{workdir} holds a single run; config.num_seeds={config['num_seeds']} needs "
            "a new folder, or choose num_seeds=1"
        )
    first = config["seed"]
    return {
        workdir / f"seed{seed}": {**config, "seed": seed, "num_seeds": 1}
        for seed in range(first, first + config["num_seeds"])
    }


@contextmanager
def open_runs(
    workdir: Path, command: str, config: Mapping[str, Any], argv: Sequence[str]
) -> Iterator[list[RunDirectory]]:
    """Opens the run of every seed of `config`; raises UserError as `open_run` does."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(_open(folder, command, own, argv))
            for folder, own in folders(workdir, config).items()
        ]


def _open(
    folder: Path, command: str, config: Mapping[str, Any], argv: Sequence[str]
) -> RunDirectory:
    """Opens a run in the first process, then follows it in the others.

    A mistake in any of them ends them all: they would wait for each other.
    """
    if jax.process_count() == 1:
        return open_run(folder, command, config, argv)
    run, mistake = None, None
    for turn in (True, False):
        try:
            if leads() and turn:
                run = open_run(folder, command, config, argv)
            elif not leads() and not turn:
                run = follow_run(folder, command, config)
        except UserError as error:
            mistake = error
        if any_process(mistake is not None):
            if run is not None:
                run.close()
            raise mistake or UserError(f"another process cannot use {folder}")
    assert run is not None
    return run


def trains_together(config: Any, runs: int, streamed: bool) -> bool:
    """Whether the runs of several seeds are one program: `parallel.seeds`.

    Raises:
        UserError: "together" with streamed data, which feed one run at a time, or
            `parallel.seed_devices` where no seeds are together.
    """
    mode = config.parallel.seeds
    if streamed and mode == "together":
        raise UserError(
            "config.parallel.seeds='together' needs the data on the device; choose auto "
            "or in_turn, or dataset.streaming=never"
        )
    # On a CPU the vmapped program takes longer than the programs one after another.
    wanted = mode == "together" or (mode == "auto" and jax.default_backend() != "cpu")
    together = runs > 1 and wanted and not streamed
    if config.parallel.seed_devices > 1 and not together:
        raise UserError(
            f"config.parallel.seed_devices={config.parallel.seed_devices} needs the runs of "
            "several seeds in one program (num_seeds, parallel.seeds=together); choose 0"
        )
    return together


def groups(runs: Sequence[RunDirectory], together: bool) -> list[list[RunDirectory]]:
    """Returns the runs without a result, in groups to be trained as one program.

    Runs of one group have a checkpoint of the same step, or none; seeds that were added
    later form a group of their own. A run that has diverged is in none.
    """
    found: list[list[RunDirectory]] = []
    for run in runs:
        if run.result is not None or run.diverged:
            continue
        for group in found:
            fresh = not shared_steps([run]) and not shared_steps(group)
            if together and (fresh or shared_steps([*group, run])):
                group.append(run)
                break
        else:
            found.append([run])
    return found


def remaining_groups(
    runs: Sequence[RunDirectory], together: bool
) -> Iterator[list[RunDirectory]]:
    """Yields what `groups` finds first until nothing is left.

    The caller finishes every run of a group, or the loop finds that some have diverged: the
    others come again, as a smaller program, which is also what they would be if the command
    were stopped there and given again.
    """
    while found := groups(runs, together):
        yield found[0]
        any_process(False)  # the first process may be writing what the others read next


def all_stand(
    runs: Sequence[RunDirectory], found: Mapping[str, Any] | None = None
) -> bool:
    """Whether all of the runs are complete, in every process: `RunDirectory.stands`."""
    return not any_process(not all(run.stands(found or {}) for run in runs))


class Kind(NamedTuple):
    """What a search and a retraining do differently.

    build: `seeds -> task`, whose `layout` is that of so many runs in one program (0: one run).
    start: `(task, seeds) -> state` before the first step.
    plan_of: `task -> Plan`.
    finish: `(task, run, state)`, which writes the result of a run that is complete.
    """

    build: Callable[[int], Any]
    start: Callable[[Any, Sequence[int]], Any]
    plan_of: Callable[[Any], Plan]
    finish: Callable[[Any, RunDirectory, Any], None]


def train(
    kind: Kind,
    runs: Sequence[RunDirectory],
    config: Any,
    interrupt: Interrupt,
    *,
    streamed: bool,
) -> list[dict[str, Any] | None] | None:
    """Trains what remains of the runs, in one program or one after another.

    Returns the contents of their result.json, None for a run that has diverged, or None when a
    signal stopped them (all that was done is saved). Raises UserError as `kind.build` and
    `trains_together` do.
    """
    task, together = None, trains_together(config, len(runs), streamed)
    for group in remaining_groups(runs, together):
        if task is None or together:
            task = kind.build(len(group) if together else 0)
            plan = kind.plan_of(task)
        state = kind.start(task, [run.config["seed"] for run in group])
        state, end = run_epochs(plan, state, group, config, interrupt)
        if end == "stopped":
            return None
        if end == "complete":
            for run, member in zip(group, task.layout.members(state), strict=True):
                kind.finish(task, run, member)
    return [run.result for run in runs]


def check_converged(runs: Sequence[RunDirectory]) -> None:
    """Raises UserError, one line for all, if runs have diverged."""
    lost = [run for run in runs if run.diverged]
    if lost:
        named = [
            f"{run.path.name}: {run.diverged}" if len(runs) > 1 else run.diverged
            for run in lost
        ]
        raise UserError(f"{'; '.join(named)}; a smaller weights.learning_rate may help")


def mean_and_spread(values: Sequence[float]) -> str:
    """Returns "mean +- sample standard deviation" of two or more accuracies."""
    return f"{statistics.mean(values):.4f} +- {statistics.stdev(values):.4f}"
