"""What the epoch loop saves, and goes on from: the checkpoints of one run or of several.

A checkpoint has the state and the sums of an unfinished epoch.
"""

import math
import sys
from collections.abc import Sequence
from typing import Any

import jax

from darts_jax.errors import UserError
from darts_jax.training import checkpoints, records
from darts_jax.training.parallel import Layout
from darts_jax.training.run_directory import RunDirectory

STOPPED = "stopped.json"  # of a run that a signal stopped within an epoch


def save(
    layout: Layout,
    runs: Sequence[RunDirectory],
    step: int,
    state: Any,
    sums: Any,
    *,
    keep: int,
) -> None:
    """Saves the part of every run that has not diverged; `keep` checkpoints stay."""
    members = layout.members({"state": state, "sums": sums})
    # Runs of one program go on from a step that all have: a kill may come between them.
    keep = max(keep, min(len(runs), 2))
    for run, tree in zip(runs, members, strict=True):
        if run.leads and not run.diverged:
            checkpoints.save(run.checkpoints, step, tree, keep=keep)


def latest(
    layout: Layout, runs: Sequence[RunDirectory], state: Any, sums: Any
) -> tuple[Any, Any]:
    """Returns state and sums of the latest checkpoint that all runs have, or the given ones.

    Raises:
        UserError: no checkpoint is intact, or they are of another network.
    """
    steps = shared_steps(runs)
    if not steps:
        for run in runs:
            if run.resumed and run.leads:
                print(f"no checkpoint in {run.path}: from the start", file=sys.stderr)
        return state, sums
    # Stacks have a first axis that a single run's checkpoint does not.
    cut = 1 if layout.seeds else 0
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape[cut:], leaf.dtype),
        {"state": state, "sums": sums},
    )
    if layout.seeds:
        found = _restore_together(runs, like, steps)
    else:
        found = [checkpoints.restore(runs[0].checkpoints, like)[0]]
    saved = layout.stack(found)
    return saved["state"], saved["sums"]


def shared_steps(runs: Sequence[RunDirectory]) -> list[int]:
    """Returns the steps of which every run has a checkpoint, the latest last."""
    found = [set(checkpoints.saved_steps(run.checkpoints)) for run in runs]
    return sorted(set.intersection(*found)) if found else []


def _restore_together(
    runs: Sequence[RunDirectory], like: Any, steps: list[int]
) -> list[Any]:
    """Returns what every run saved at the latest step that is intact in all of them."""
    for step in reversed(steps):
        try:
            found = [checkpoints.restore(r.checkpoints, like, step)[0] for r in runs]
        except UserError:
            if step == steps[0]:
                raise
            continue
        for run in runs:
            if run.leads:  # a kill between two saves: these come again, the same bits
                checkpoints.drop_after(run.checkpoints, step)
        return found
    raise AssertionError("there is a step")


def note_seconds(runs: Sequence[RunDirectory], step: int, seconds: float) -> None:
    """Writes how long an epoch has taken that is stopped at `step`."""
    for run in runs:
        run.write_json(STOPPED, {"step": step, "seconds": seconds})


def seconds_before(run: RunDirectory, step: int) -> float:
    """Returns the seconds that an epoch took before it was stopped at `step`."""
    path = run.path / STOPPED
    part = records.read_object(path) if path.is_file() else {}
    seconds = part.get("seconds") if part.get("step") == step else None
    known = isinstance(seconds, float) and math.isfinite(seconds)
    return float(seconds or 0.0) if known else 0.0
