"""Whether a command goes on with a run: what may differ, and the checks of all else."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from darts_jax.data import Dataset
from darts_jax.errors import UserError
from darts_jax.training import records

Made = tuple[str, Mapping[str, Any]]  # a command ("search" or "retrain") and its config

# What each of several processes may have of its own: none waits for another because of it.
LOCAL_FIELDS = (
    "progress",
    "tensorboard",
    "dataset.path",
    "dataset.data_dir",
    "dataset.workers",
    "dataset.prefetch",
)
# What a resumed run may have otherwise: nothing of the result depends on it but, where the
# number of devices or of seeds in one program changes, the rounding of sums. The data may
# have moved; that they are the same is checked by themselves.
FREE_FIELDS = (
    *LOCAL_FIELDS,
    "log_every_steps",
    "checkpoint_every",
    "keep_checkpoints",
    "num_seeds",
    "parallel.devices",
    "parallel.seeds",
    "parallel.seed_devices",
    "parallel.steps_per_call",
)


def check_same(
    path: Path, made: Made, given: Made, free: Sequence[str] = FREE_FIELDS
) -> None:
    """Raises UserError if the run in `path` was `made` by another command or config.

    free: the fields that may differ.
    """
    if made[0] != given[0]:
        raise UserError(f"{path} holds a {made[0]} run; name another for {given[0]}")
    differences = _differences(made[1], given[1], free)
    if differences:
        raise UserError(
            f"{path} was started with another config: {', '.join(differences)}; "
            "name another --workdir or give the recorded values"
        )


def fingerprint(dataset: Dataset, *, test: bool) -> dict[str, Any]:
    """Returns what tells the data of a run from others, for its manifest.

    test: whether the test split belongs to the run. Pixels are seen by their mean and
    standard deviation only, where these are measured.
    """
    images, labels = dataset.train_images, [dataset.train_labels]
    found: dict[str, Any] = {"name": dataset.name, "training images": len(labels[0])}
    if test:
        labels.append(dataset.test_labels)
        found["test images"] = len(dataset.test_labels)
    digest = hashlib.sha256()
    for some in labels:
        digest.update(some.astype("<i4").tobytes())
    return found | {
        "image shape": list(images.shape[1:]),
        "classes": list(dataset.class_names),
        "labels": digest.hexdigest()[:16],
        "mean": [round(float(value), 5) for value in dataset.mean],
        "std": [round(float(value), 5) for value in dataset.std],
    }


def check_same_data(
    path: Path, made: Mapping[str, Any], given: Mapping[str, Any]
) -> None:
    """Raises UserError if the run in `path` was started on data of another fingerprint."""
    differences = _differences(made, given)
    if differences:
        raise UserError(
            f"{path} was started on other data: {', '.join(differences)}; bring them "
            "back or name another --workdir"
        )


def _differences(
    old: Mapping[str, Any], new: Mapping[str, Any], free: Sequence[str] = ()
) -> list[str]:
    """Returns "field old -> new" of every field that differs and is not free."""
    before, after = records.flatten(old), records.flatten(new)
    return [
        f"{field} {before.get(field, 'absent')!r} -> {after.get(field, 'absent')!r}"
        for field in sorted({*before, *after} - set(free))
        if before.get(field, "absent") != after.get(field, "absent")
    ]
