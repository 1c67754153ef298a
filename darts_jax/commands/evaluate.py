"""`darts-jax evaluate`: test a retrained network again from its checkpoint."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from darts_jax.commands import flags as command_flags
from darts_jax.commands.checks import check_values
from darts_jax.commands.configuration import apply_overrides
from darts_jax.errors import UserError, unknown
from darts_jax.training.records import flatten

# Fields that runs of earlier versions do not have, at the value that they had in effect.
EARLIER = {
    "precision": "float32",
    "accumulate": 1,
    "batch_norm.groups": 1,
    "model.remat": False,
    "model.implementation": "fused",
    "parallel.devices": 0,
    "parallel.seed_devices": 0,
    "dataset.streaming": "never",
    "dataset.resident_gib": 4.0,
    "dataset.workers": 4,
    "dataset.prefetch": 2,
    "dataset.test_crop": 1.0,
    "dataset.fraction": 1.0,
    "dataset.subset_seed": 0,
    "dataset.mean": (),
    "dataset.std": (),
}


# What may be otherwise than in the run: where the data lie, and how they are read.
OTHERWISE = (
    "dataset.path",
    "dataset.data_dir",
    "dataset.workers",
    "dataset.prefetch",
)


def main(argv: Sequence[str]) -> int:
    """Tests the latest checkpoint of a retraining; returns the exit status."""
    arguments = command_flags.parse(argv, {"workdir": None}, overrides=True)
    workdir = arguments.flags["workdir"]
    if not workdir:
        raise UserError("evaluate needs --workdir=DIR, the directory of a retraining")
    from darts_jax.training.retrain import evaluate_run
    from darts_jax.training.run_directory import read_run

    for field in arguments.overrides:
        if field not in OTHERWISE:
            raise unknown("config field of an evaluation", field, OTHERWISE)
    path = Path(str(workdir)).expanduser()
    single = (path / "config.json").is_file()
    seeds = [] if single else sorted(path.glob("seed*/config.json"))
    for run in [config.parent for config in seeds] or [path]:
        command, config = read_run(run)
        if command != "retrain":
            raise UserError(f"{run} holds a {command} run; evaluate tests retrainings")
        changed = ConfigDict(completed(config))
        apply_overrides(changed, arguments.overrides)
        check_values(flatten(changed.to_dict()))
        metrics = evaluate_run(run, FrozenConfigDict(changed))
        name = f"{run.name}: " if seeds else ""
        print(
            f"{name}step {metrics['step']} (epoch {metrics['epoch']}): "
            f"test accuracy {metrics['test_accuracy']:.4f}, "
            f"top 5 {metrics['test_top5_accuracy']:.4f}, "
            f"loss {metrics['test_loss']:.4f}",
            flush=True,
        )
    return 0


def completed(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the config of a run with the fields that its version did not have."""
    for field, value in EARLIER.items():
        section, _, name = field.rpartition(".")
        owner = config.setdefault(section, {}) if section else config
        owner.setdefault(name, value)
    return config
