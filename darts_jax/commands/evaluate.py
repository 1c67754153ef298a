"""`darts-jax evaluate`: test a retrained network again from its checkpoint."""

from collections.abc import Sequence
from pathlib import Path

from ml_collections import FrozenConfigDict

from darts_jax.commands import flags as command_flags
from darts_jax.errors import UserError


def main(argv: Sequence[str]) -> int:
    """Tests the latest checkpoint of a retraining; returns the exit status."""
    known = {"workdir": None}
    workdir = command_flags.parse(argv, known, overrides=False).flags["workdir"]
    if not workdir:
        raise UserError("evaluate needs --workdir=DIR, the directory of a retraining")
    from darts_jax.training.retrain import evaluate_run
    from darts_jax.training.run_directory import read_run

    path = Path(str(workdir))
    command, config = read_run(path)
    if command != "retrain":
        raise UserError(f"{path} holds a {command} run; evaluate tests retrainings")
    metrics = evaluate_run(path, FrozenConfigDict(config))
    print(
        f"step {metrics['step']} (epoch {metrics['epoch']}): "
        f"test accuracy {metrics['test_accuracy']:.4f}, "
        f"top 5 {metrics['test_top5_accuracy']:.4f}, loss {metrics['test_loss']:.4f}"
    )
    return 0
