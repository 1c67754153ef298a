"""SIGTERM and SIGINT as a flag that the training loop polls between two steps.

Orbax notices a preemption only under `jax.distributed`; a plain process would just die. The
loop saves when it sees the flag; its caller then exits with status `128 + signum`.
"""

import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupt:
    """Context manager: inside it the first signal sets `signum`, a second one kills.

    signum: the number of the signal that came, None while there was none.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._previous: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return self.signum is not None

    @property
    def exit_status(self) -> int:
        """The status to exit with: 0, or 128 + the signal's number."""
        return 0 if self.signum is None else 128 + self.signum

    def __enter__(self) -> "Interrupt":
        # Elsewhere than in the main thread Python forbids handlers; then nothing is caught.
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                # A background job of a script ignores SIGINT, and is to go on doing so.
                if signal.getsignal(signum) != signal.SIG_IGN:
                    self._previous[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous.clear()

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
            return
        self.signum = signum
        name = signal.Signals(signum).name
        line = f"\n{name}: saving after this step; a second signal stops at once\n"
        # Not print: the handler may run in the middle of another write to the buffer.
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, line.encode())
