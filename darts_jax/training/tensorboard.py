"""What a run writes for TensorBoard: scalars, genotypes, pictures of the edge weights."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np


class TensorBoard:
    """The event file of a run, opened at the first write; it writes nothing unless enabled.

    What cannot be written is said once, and the run goes on without it.

    path: its folder. last_step: the latest that an earlier process of the run has finished,
    -1: none; the viewer hides what that process wrote beyond it.
    """

    def __init__(self, path: Path, *, enabled: bool, last_step: int = -1) -> None:
        self.path = path
        self.enabled = enabled
        self.last_step = last_step
        self._writer: Any = None

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes `{tag: value}` at `step`."""
        with self._unless_it_fails():
            for tag, value in values.items() if self.enabled else ():
                self._open().add_scalar(tag, float(value), step)
            if self._writer is not None:
                self._writer.flush()

    def text(self, step: int, tag: str, text: str) -> None:
        """Writes a preformatted text at `step`."""
        if self.enabled:
            indented = "\n".join(f"    {line}" for line in text.splitlines())
            with self._unless_it_fails():
                self._open().add_text(tag, indented, step)

    def heat_map(self, step: int, tag: str, values: np.ndarray) -> None:
        """Draws a matrix of values in [0, 1] at `step`, dark is large."""
        if self.enabled:
            cells = np.kron(255 * (1 - values), np.ones((16, 32))).astype(np.uint8)
            with self._unless_it_fails():
                self._open().add_image(tag, cells, step, dataformats="HW")

    def close(self) -> None:
        """Closes the event file; a later write opens another."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with self._unless_it_fails():
                writer.close()

    def _open(self) -> Any:
        if self._writer is None:
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(str(self.path), purge_step=self.last_step + 1)
        return self._writer

    @contextmanager
    def _unless_it_fails(self) -> Iterator[None]:
        """A run does not end because its pictures cannot be written: it goes on without."""
        try:
            yield
        except OSError as error:
            self.enabled, self._writer = False, None
            reason = error.strerror or str(error)
            print(
                f"nothing more for TensorBoard in {self.path}: {reason}",
                file=sys.stderr,
            )
