"""Whether a command goes on with a run: the fields that may differ, and the check."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from darts_jax.errors import UserError
from darts_jax.training import records

Made = tuple[str, Mapping[str, Any]]  # a command ("search" or "retrain") and its config

# What changes nothing of the result, so that a resumed run may have it otherwise.
FREE_FIELDS = (
    "progress",
    "tensorboard",
    "log_every_steps",
    "checkpoint_every",
    "keep_checkpoints",
    "dataset.data_dir",
    "dataset.workers",
    "dataset.prefetch",
    "num_seeds",
    "parallel.devices",
    "parallel.seeds",
    "parallel.seed_devices",
    "parallel.steps_per_call",
)


def check_same(path: Path, made: Made, given: Made) -> None:
    """Raises UserError if the run in `path` was `made` by another command or config."""
    if made[0] != given[0]:
        raise UserError(f"{path} holds a {made[0]} run; name another for {given[0]}")
    differences = config_differences(made[1], given[1])
    if differences:
        raise UserError(
            f"{path} was started with another config: {', '.join(differences)}; "
            "name another --workdir or give the recorded values"
        )


def config_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Returns "field old -> new" of every field that may not change on resume."""
    before, after = records.flatten(old), records.flatten(new)
    return [
        f"{field} {before.get(field, 'absent')!r} -> {after.get(field, 'absent')!r}"
        for field in sorted({*before, *after} - set(FREE_FIELDS))
        if before.get(field, "absent") != after.get(field, "absent")
    ]
