"""The commands of `darts-jax`: one module each, imported only when it is called.

A command's module has `main(argv) -> int`: it takes the arguments after the command's
name, returns the exit status and raises `UserError` on a mistake. A new command is one
file and one line here.
"""

from typing import NamedTuple

RUN_USAGE = "--config=FILE[:ARG] --workdir=DIR [--config.FIELD=VALUE ...] [--dry-run]"


class Command(NamedTuple):
    """What the help says of a command, known without importing its module."""

    module: str  # "darts_jax.commands.search"
    usage: str  # the arguments after the name
    help: str  # one line


COMMANDS: dict[str, Command] = {
    "search": Command(
        "darts_jax.commands.search",
        RUN_USAGE,
        "search a cell: weights and alphas in turn, then derive the genotype",
    ),
    "retrain": Command(
        "darts_jax.commands.retrain",
        RUN_USAGE + " --config.genotype=GENOTYPE",
        "train the network of a genotype from scratch and test it",
    ),
    "evaluate": Command(
        "darts_jax.commands.evaluate",
        "--workdir=DIR [--config.dataset.path=DIR ...]",
        "test a retrained network again from its checkpoint",
    ),
    "report": Command(
        "darts_jax.commands.report",
        "RUN [RUN ...] [--output=FILE]",
        "write report.html of one or several runs and print the summary",
    ),
    "benchmark": Command(
        "darts_jax.commands.benchmark",
        "[--size=NAME] [--workloads=A,B] [--steps=N] [--implementation=plain|fused|merged] "
        "[--precision=float32|bfloat16] [--seeds=N] "
        "[--baseline=torch [--torch-compile] | --baseline=pmap] [--json=FILE] [--compile-only]",
        "measure steps of search and retraining: time, memory, compilation, ratios",
    ),
    "zoo": Command(
        "darts_jax.commands.zoo",
        "[NAME]",
        "list the published genotypes, or show one",
    ),
    "doctor": Command(
        "darts_jax.commands.doctor",
        "[--data_dir=DIR]",
        "show versions, devices, data sets, disk space and caches",
    ),
}
