"""`darts-jax retrain`: train a genotype's network from scratch and test it."""

import sys
from collections.abc import Sequence

from darts_jax.commands import configuration


def main(argv: Sequence[str]) -> int:
    """Runs or resumes a retraining; returns the exit status."""
    config, workdir, _ = configuration.load(argv, "retrain")
    from darts_jax.training.interrupt import Interrupt
    from darts_jax.training.retrain import retrain
    from darts_jax.training.run_directory import open_run

    command_line = ["retrain", *argv]
    with (
        open_run(workdir, "retrain", config.to_dict(), command_line) as run,
        Interrupt() as interrupt,
    ):
        result = retrain(run, config, interrupt)
    if result is None:
        print(f"stopped; the same command resumes {workdir}", file=sys.stderr)
        return interrupt.exit_status
    print(
        f"{result['genotype_name']}: test accuracy {result['test_accuracy']:.4f}, "
        f"top 5 {result['test_top5_accuracy']:.4f}, "
        f"{result['parameters']:,} parameters, "
        f"{result['multiply_adds'] / 1e6:.1f} M multiply-adds"
    )
    return 0
