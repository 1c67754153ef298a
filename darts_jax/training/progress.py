"""The progress of a run: a bar on a terminal, one plain line an epoch elsewhere."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    """Shows how far a run is."""

    def __call__(self, step: int, text: str, *, end_of_epoch: bool = False) -> None:
        """Shows `step` of all steps with a text; lines are only for the end of an epoch."""


@contextmanager
def show_progress(label: str, total: int, *, enabled: bool) -> Iterator[Progress]:
    """Yields a `Progress` over `total` steps."""
    if not enabled:
        yield lambda step, text, *, end_of_epoch=False: None
        return
    if not sys.stderr.isatty():

        def line(step: int, text: str, *, end_of_epoch: bool = False) -> None:
            if end_of_epoch:
                print(
                    f"{label}: step {step}/{total}, {text}", file=sys.stderr, flush=True
                )

        yield line
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn(f"{label} [progress.percentage]{{task.percentage:>3.0f}}%"),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TextColumn("<"),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with RichProgress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task("compiling", total=total)

        def bar(step: int, text: str, *, end_of_epoch: bool = False) -> None:
            bars.update(task, completed=step, description=text)

        yield bar
