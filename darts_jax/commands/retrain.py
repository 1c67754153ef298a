"""`darts-jax retrain`: train a genotype's network from scratch and test it."""

import signal
import sys
from collections.abc import Sequence

from darts_jax.commands import configuration, processes

FLAGS = {"dry-run": False, **processes.FLAGS}


def main(argv: Sequence[str]) -> int:
    """Runs or resumes a retraining; returns the exit status."""
    config, workdir, given = configuration.load(argv, "retrain", FLAGS)
    processes.connect(given)
    from darts_jax.kernels.allocator import keep_freed_memory

    keep_freed_memory()  # before JAX makes its devices
    if given["dry-run"]:
        from darts_jax.training.estimate import estimate_retraining

        print("\n".join(estimate_retraining(config)))
        return 0
    from darts_jax.training.interrupt import Interrupt
    from darts_jax.training.retrain import retrain
    from darts_jax.training.seeds import check_converged, mean_and_spread, open_runs

    command_line = ["retrain", *argv]
    with (
        open_runs(workdir, "retrain", config.to_dict(), command_line) as runs,
        Interrupt() as interrupt,
    ):
        results = retrain(runs, config, interrupt)
    if results is None:
        if runs[0].leads:
            print(f"stopped; the same command resumes {workdir}", file=sys.stderr)
        # The signal may have come to another process only.
        return interrupt.exit_status or 128 + signal.SIGTERM
    accuracies = []
    for run, result in zip(runs, results, strict=True):
        if result is None or not run.leads:
            continue
        seed = f"seed {run.config['seed']}, " if len(runs) > 1 else ""
        print(
            f"{seed}{result['genotype_name']}: "
            f"test accuracy {result['test_accuracy']:.4f}, "
            f"top 5 {result['test_top5_accuracy']:.4f}, "
            f"{result['parameters']:,} parameters, "
            f"{result['multiply_adds'] / 1e6:.1f} M multiply-adds"
        )
        accuracies.append(result["test_accuracy"])
    if len(accuracies) > 1:
        spread = mean_and_spread(accuracies)
        print(f"test accuracy, {len(accuracies)} seeds: {spread}")
    check_converged(runs)
    return 0
