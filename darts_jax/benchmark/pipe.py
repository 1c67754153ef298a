"""A worker and its parent talk in JSON, one line a request and one a reply."""

import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import IO, Any, NamedTuple

Handler = Callable[..., dict[str, Any]]
SHOWN = 15  # lines of a failed worker's stderr


class WorkerError(RuntimeError):
    """A worker ended before it answered; the message holds the end of its stderr.

    reason: how it ended and its last line, in one line.
    """

    def __init__(self, command: str, how: str, last_lines: Sequence[str] = ()) -> None:
        super().__init__("\n".join([f"{command} {how}", *last_lines]))
        self.reason = ": ".join([how, *last_lines[-1:]])


def serve(handlers: Mapping[str, Handler]) -> None:
    """Answers `{"do": name, **arguments}` by `handlers[name](**arguments)` until stdin ends.

    What anything else prints goes to stderr, so that it cannot mix with the answers.
    """
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        for line in sys.stdin:
            request = json.loads(line)
            reply = handlers[request.pop("do")](**request)
            print(json.dumps(reply), file=answers, flush=True)


class Worker(NamedTuple):
    """A child process that serves."""

    command: tuple[str, ...]
    process: "subprocess.Popen[str]"
    errors: IO[str]  # its stderr

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Sends a request and returns the reply.

        Raises:
            WorkerError: the worker has ended.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            request = json.dumps({"do": do, **arguments})
            print(request, file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise self._ending()
        return json.loads(line)

    def _ending(self) -> WorkerError:
        status = self.process.wait()
        self.errors.seek(0)
        last = [line for line in self.errors.read().splitlines() if line.strip()]
        if status < 0:
            how = f"signal {-status}"
            how += " (out of memory?)" if status == -9 else ""
        else:
            how = f"status {status}"
        return WorkerError(shlex.join(self.command), f"ended with {how}", last[-SHOWN:])


@contextmanager
def started(command: Sequence[str], environment: Mapping[str, str]) -> Iterator[Worker]:
    """Starts a worker and ends it with the context."""
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors,
        subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            encoding="utf-8",
            env=dict(environment),
        ) as process,
    ):
        try:
            yield Worker(tuple(command), process, errors)
        finally:
            # A worker keeps nothing: it may be in the middle of a long step.
            process.kill()
            assert process.stdin is not None
            with suppress(BrokenPipeError):
                process.stdin.close()
