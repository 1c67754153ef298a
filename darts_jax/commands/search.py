"""`darts-jax search`: search a cell and derive its genotype."""

import signal
import sys
from collections.abc import Sequence

from darts_jax.commands import configuration, processes

FLAGS = {"dry-run": False, **processes.FLAGS}


def main(argv: Sequence[str]) -> int:
    """Runs or resumes a search; returns the exit status."""
    config, workdir, given = configuration.load(argv, "search", FLAGS)
    processes.connect(given)
    from darts_jax.kernels.allocator import keep_freed_memory

    keep_freed_memory()  # before JAX makes its devices
    if given["dry-run"]:
        from darts_jax.training.estimate import estimate_search

        print("\n".join(estimate_search(config)))
        return 0
    from darts_jax.genotype import Genotype, pretty
    from darts_jax.training.interrupt import Interrupt
    from darts_jax.training.search import search
    from darts_jax.training.seeds import check_converged, mean_and_spread, open_runs

    command_line = ["search", *argv]
    with (
        open_runs(workdir, "search", config.to_dict(), command_line) as runs,
        Interrupt() as interrupt,
    ):
        results = search(runs, config, interrupt)
    if results is None:
        if runs[0].leads:
            print(f"stopped; the same command resumes {workdir}", file=sys.stderr)
        # The signal may have come to another process only.
        return interrupt.exit_status or 128 + signal.SIGTERM
    accuracies = []
    for run, result in zip(runs, results, strict=True):
        if result is None or not run.leads:
            continue
        if len(runs) > 1:
            print(f"seed {run.config['seed']}:")
        print(pretty(Genotype.from_json(result["genotype"])))
        print(f"supernet accuracy on the valid data: {result['valid_accuracy']:.4f}")
        print(f"genotype: {run.path / 'genotype.json'}")
        accuracies.append(result["valid_accuracy"])
    if len(accuracies) > 1:
        spread = mean_and_spread(accuracies)
        print(f"supernet accuracy on the valid data, {len(accuracies)} seeds: {spread}")
    check_converged(runs)
    return 0
