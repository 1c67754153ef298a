"""From a `Source` to its arrays: prepared once, by one process, never half.

Order of attempts: decoded arrays; the prepared set; the source itself. The last two happen
under a lock that the kernel drops when its holder dies, and every directory gets its final
name only when it is complete.
"""

import contextlib
import errno
import fcntl
import shutil
from collections.abc import Iterator
from pathlib import Path

from darts_jax.data import arrays
from darts_jax.data.arrays import Arrays
from darts_jax.data.progress import say
from darts_jax.data.source import Contents, Source
from darts_jax.errors import UserError

CANNOT_WRITE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


def directory_of(source: Source, data_dir: Path) -> Path:
    """Returns where the records of `source` lie, preparing them if they are not there.

    Raises `UserError` as `get` does.
    """
    directory = data_dir / source.name / source.config / source.version
    if not directory.is_dir():
        with _locked(source, data_dir, directory):
            if not directory.is_dir():  # nor made by another process meanwhile
                arrays.sweep(directory)
                _prepare(source, data_dir)
    return directory


def get(source: Source, data_dir: Path) -> Arrays:
    """Returns the arrays of `source`, preparing the set in `data_dir` if it is not there.

    Raises `UserError` when the source is not usable, `data_dir` cannot be written to or is
    full, or the prepared set is damaged.
    """
    directory = data_dir / source.name / source.config / source.version
    ready = arrays.load(directory)
    if ready is not None:
        return ready
    with _locked(source, data_dir, directory):
        ready = arrays.load(directory)  # by another process, while this one waited
        if ready is not None:
            return ready
        arrays.sweep(directory)
        if not directory.is_dir():
            _prepare(source, data_dir)
        try:
            return arrays.make(directory, source.mean_std)
        except UserError:
            raise
        except Exception as error:  # whatever array_record, Pillow or json find wrong
            if isinstance(error, OSError) and error.errno in CANNOT_WRITE:
                raise _cannot_write(data_dir, error) from error
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"the prepared data set in {directory} is damaged ({reason}): "
                "delete that directory and run again"
            ) from error


@contextlib.contextmanager
def _locked(source: Source, data_dir: Path, directory: Path) -> Iterator[None]:
    """Holds the lock of a data set; without one where an existing set is read-only."""
    name = "-".join(filter(None, (source.name, source.config)))
    with contextlib.ExitStack() as stack:
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((data_dir / f".{name}.lock").open("w"))
        except OSError as error:
            if not directory.is_dir():
                raise _cannot_write(data_dir, error) from error
        else:
            _wait(file.fileno(), name)
        yield


def _wait(descriptor: int, name: str) -> None:
    # Some network file systems know no locks: there two processes may both prepare, and
    # the second to finish fails on the rename. Nothing is corrupted.
    with contextlib.suppress(OSError):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that prepares {name} ...")
            fcntl.flock(descriptor, fcntl.LOCK_EX)


def _cannot_write(data_dir: Path, error: OSError) -> UserError:
    return UserError(
        f"cannot write to the data directory {data_dir} ({error.strerror or error}): pass "
        "--config.dataset.data_dir=DIR or set DARTS_JAX_DATA"
    )


def _prepare(source: Source, data_dir: Path) -> None:
    contents = source.open()
    _check_space(contents, data_dir)
    from darts_jax.data import builder  # imports tensorflow_datasets

    try:
        builder.prepare(source, contents, data_dir)
    except OSError as error:
        raise _cannot_write(data_dir, error) from error


def _check_space(contents: Contents, data_dir: Path) -> None:
    """Raises `UserError` unless the disk holds the images twice: records and arrays."""
    height, width, channels = contents.shape
    count = contents.num_train + contents.num_test
    needed = 2 * count * height * width * channels
    free = shutil.disk_usage(data_dir).free
    if free < needed:
        raise UserError(
            f"{count:,} images of {height}x{width} need {needed / 2**30:.1f} GiB in "
            f"{data_dir}, {free / 2**30:.1f} GiB are free: pass another "
            "--config.dataset.data_dir=DIR or a smaller --config.dataset.image_size=N"
        )
