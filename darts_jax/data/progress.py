"""How a preparation shows that it is alive: a bar on a terminal, else plain lines."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

QUIET_SECONDS = 2.0


@contextlib.contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yields `advance(count)`; writes to stderr.

    Where that is no terminal: a line when the work has taken QUIET_SECONDS, and one at its
    end. Shorter work is silent.
    """
    start = time.monotonic()
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(label, total=total)
            yield lambda count: bar.advance(task, count)
    else:
        spoken = False

        def advance(count: int) -> None:
            nonlocal spoken
            del count
            if not spoken and time.monotonic() - start > QUIET_SECONDS:
                spoken = True
                say(f"{label} ...")

        yield advance
    seconds = time.monotonic() - start
    if seconds > QUIET_SECONDS:
        say(f"{label}: done in {seconds:.0f} s")


def say(line: str) -> None:
    """Writes one line to stderr: standard output belongs to the command."""
    print(line, file=sys.stderr, flush=True)
