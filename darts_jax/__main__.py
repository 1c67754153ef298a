"""`darts-jax COMMAND` and `python -m darts_jax COMMAND`.

Exit status: 0 done, 1 a failure of ours (with its traceback), 2 a mistake of the user's
(one line), 128 + the signal's number where a signal ended the run.
"""

import errno
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence

from darts_jax import __version__
from darts_jax.commands import COMMANDS, RUN_USAGE, compilation_cache, xla_flags
from darts_jax.errors import UserError, unknown

HELP_FLAGS = ("--help", "-h", "-help", "help")
RUN_HELP = """
configs/base.py lists every field with a comment; --config.SECTION.FIELD=VALUE overrides
one. FILE:tiny is a run of seconds. The same command again resumes a stopped run.
--dry-run compiles and says what the run takes: steps, parameters, memory.
--distributed joins the processes that Slurm, Open MPI, Kubernetes or a TPU pod has started;
--coordinator=HOST:PORT --processes=N --process=I does so by hand."""


OUT_OF_MEMORY = (
    "out of memory; what was saved is intact. These fields need less: config.accumulate=2 "
    "or more (a batch in parts), config.model.remat=True (cells computed again in the "
    "backward pass), config.precision=bfloat16, config.batch_size, config.model.channels; "
    "for data, config.dataset.streaming=always. --dry-run says how much a run takes"
)


# What XLA says where cuBLAS or cuDNN finds no memory for itself; seen on a GPU that was full.
OF_GPU_LIBRARIES = (
    "Failed to initialize BLASLT support",
    "StreamExecutor without BLAS support",
    "DNN library initialization failed",
)

# What the file system refuses, whatever we would do there; all else is a mistake of ours.
OF_FILES = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EFBIG,
    errno.EIO,
    errno.EEXIST,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that `argv` (default: the process's arguments) names.

    Returns the exit status; a `UserError` becomes one line on stderr and status 2.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(words)
    except UserError as error:
        return _fail(" ".join(str(error).split()))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # Whoever read our output has gone; a flush at exit would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        if is_out_of_memory(error):
            return _fail(OUT_OF_MEMORY)
        if is_without_gpu_library(error):
            return _fail(
                "a GPU library did not start, mostly because other processes have taken the "
                "GPU's memory: end them, or leave some of it with "
                "XLA_PYTHON_CLIENT_MEM_FRACTION=0.6; what was saved is intact. "
                f"{' '.join(str(error).split()):.200}"
            )
        if is_disk_full(error):
            return _fail(
                "no space left on the device; what was saved before is intact: free some "
                "space and give the same command again"
            )
        if isinstance(error, OSError) and error.errno in OF_FILES:
            name = error.filename or "a file cannot be written"
            return _fail(f"{name}: {error.strerror}; what was saved before is intact")
        if is_without_device(error):
            reason = " ".join(str(error).split())
            chosen = os.environ.get("JAX_PLATFORMS", "")
            return _fail(
                f'JAX finds no device (JAX_PLATFORMS={chosen!r}; "" lets it choose, cpu '
                f"needs nothing else) {reason:.200}".rstrip()
            )
        raise


def _fail(line: str) -> int:
    print(f"darts-jax: error: {line}", file=sys.stderr)
    return 2


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in HELP_FLAGS:
        print(overview())
        return 0
    if words[0] == "--version":
        print(__version__)
        return 0
    name, rest = words[0], words[1:]
    if name not in COMMANDS:
        raise unknown("command", name, COMMANDS)
    if any(word in HELP_FLAGS[:3] for word in rest):
        print(command_help(name))
        return 0
    xla_flags.set_defaults()
    compilation_cache.turn_on()
    return importlib.import_module(COMMANDS[name].module).main(rest)


def overview() -> str:
    """Returns the help of `darts-jax` without a command."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {c.help}" for name, c in COMMANDS.items()]
    return "\n".join(
        [
            "darts-jax: differentiable architecture search in JAX",
            "",
            "usage: darts-jax COMMAND [...]    (darts-jax COMMAND --help says more)",
            "",
            *lines,
            "",
            "to begin:",
            "  darts-jax search --config=configs/search_digits.py --workdir=runs/s0",
            "  darts-jax report runs/s0",
        ]
    )


def command_help(name: str) -> str:
    """Returns the help of the command `name`."""
    command = COMMANDS[name]
    lines = [f"usage: darts-jax {name} {command.usage}", "", command.help]
    if RUN_USAGE in command.usage:
        lines.append(RUN_HELP)
    return "\n".join(lines)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error, or one that caused it, is a device's or the host's full memory."""
    return any(
        isinstance(it, MemoryError)
        or ("RESOURCE_EXHAUSTED" in str(it) and "out of memory" in str(it).lower())
        for it in _causes(error)
    )


def is_without_gpu_library(error: BaseException) -> bool:
    """Whether the error, or one that caused it, is a GPU library that did not start."""
    return any(sign in str(it) for it in _causes(error) for sign in OF_GPU_LIBRARIES)


def is_disk_full(error: BaseException) -> bool:
    """Whether the error, or one that caused it, is a full disk."""
    return any(
        isinstance(it, OSError) and it.errno in (errno.ENOSPC, errno.EDQUOT)
        for it in _causes(error)
    )


def is_without_device(error: BaseException) -> bool:
    """Whether JAX raised the error where it looks for its devices."""
    frames = traceback.extract_tb(error.__traceback__)
    kinds = RuntimeError | AssertionError
    return isinstance(error, kinds) and frames[-1].filename.endswith("xla_bridge.py")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yields the error and, one after another, those that led to it."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


if __name__ == "__main__":
    sys.exit(main())
