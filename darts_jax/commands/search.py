"""`darts-jax search`: search a cell and derive its genotype."""

import sys
from collections.abc import Sequence

from darts_jax.commands import configuration


def main(argv: Sequence[str]) -> int:
    """Runs or resumes a search; returns the exit status."""
    config, workdir, _ = configuration.load(argv, "search")
    from darts_jax.genotype import Genotype, pretty
    from darts_jax.training.interrupt import Interrupt
    from darts_jax.training.run_directory import open_run
    from darts_jax.training.search import search

    command_line = ["search", *argv]
    with (
        open_run(workdir, "search", config.to_dict(), command_line) as run,
        Interrupt() as interrupt,
    ):
        result = search(run, config, interrupt)
    if result is None:
        print(f"stopped; the same command resumes {workdir}", file=sys.stderr)
        return interrupt.exit_status
    print(pretty(Genotype.from_json(result["genotype"])))
    print(f"supernet accuracy on the valid data: {result['valid_accuracy']:.4f}")
    print(f"genotype: {workdir / 'genotype.json'}")
    return 0
