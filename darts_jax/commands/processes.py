"""Several processes as one run: how a process finds the others, before JAX starts."""

import os
import sys
from collections.abc import Mapping
from typing import Any

from darts_jax.errors import UserError

FLAGS: dict[str, str | bool | None] = {
    "distributed": False,  # find the others by Slurm, Open MPI, Kubernetes or a TPU pod
    "coordinator": "",  # or by hand: HOST:PORT of the first process,
    "processes": "",  # how many there are,
    "process": "",  # and which one this is, from 0
}
BY_HAND = ("coordinator", "processes", "process")
TIMEOUT = 300  # seconds until all processes have to be there


def connect(given: Mapping[str, Any]) -> None:
    """Joins the processes that `given`, the values of FLAGS, describe; or does nothing.

    Raises:
        UserError: some of the flags are missing or no numbers, or the others are not found.
    """
    named = [name for name in BY_HAND if given[name]]
    if not named and not given["distributed"]:
        return
    if given.get("dry-run"):
        raise UserError(
            "--dry-run is of one process; leave out --distributed and others"
        )
    options: dict[str, Any] = {}
    if named:
        if len(named) < len(BY_HAND):
            missing = [f"--{name}" for name in BY_HAND if name not in named]
            raise UserError(f"--{named[0]} needs {' and '.join(missing)} too")
        host, _, port = given["coordinator"].rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise UserError(
                f"--coordinator={given['coordinator']}: expected HOST:PORT, as "
                "localhost:12345"
            )
        count, index = (_number(given[name], name) for name in BY_HAND[1:])
        if count < 1:
            raise UserError(f"--processes={count}: expected at least 1")
        if index >= count:
            raise UserError(f"--process={index}: choose 0 to {count - 1}")
        options = {
            "coordinator_address": given["coordinator"],
            "num_processes": count,
            "process_id": index,
        }
    import jax

    _libraries_to_stderr()
    # Said first: where one is missing, JAX ends the process with a trace of its own.
    where = f" at {given['coordinator']}" if named else ""
    print(f"waiting for all processes{where}, {TIMEOUT} s at most", file=sys.stderr)
    try:
        jax.distributed.initialize(initialization_timeout=TIMEOUT, **options)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        hint = "" if named else "; without Slurm and the like give --coordinator"
        raise UserError(
            f"cannot join the other processes: {reason:.200}{hint}"
        ) from error


def _libraries_to_stderr() -> None:
    """Leaves stdout to our own prints: on CPUs Gloo tells of its connections there."""
    sys.stdout.flush()
    own = os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding)
    os.dup2(2, 1)
    sys.stdout = own


def _number(text: Any, name: str) -> int:
    if not str(text).isdecimal():
        raise UserError(f"--{name}={text}: expected a whole number")
    return int(text)
