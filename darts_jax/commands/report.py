"""`darts-jax report`: write the HTML report of runs, print the headline."""

from pathlib import Path

from darts_jax.commands import flags
from darts_jax.errors import UserError


def main(argv: list[str]) -> int:
    """Writes the report of the run directories in `argv`; returns the exit status."""
    arguments = flags.parse(argv, {"output": ""}, positional="RUN")
    if not arguments.positional:
        raise UserError("report needs one or more run directories: report runs/s0")
    from darts_jax.report import summary_lines, write_report

    output = arguments.flags["output"]
    summary = write_report(
        [Path(run).expanduser() for run in arguments.positional],
        Path(str(output)).expanduser() if output else None,
    )
    print("\n".join(summary_lines(summary)))
    return 0
