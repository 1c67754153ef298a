"""An archive on this machine, its checksum verified: found, or downloaded within bounds.

Not tensorflow-datasets' own downloader: without a network that one retries for minutes.
"""

import hashlib
import os
import threading
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

from darts_jax.data.progress import progress
from darts_jax.errors import UserError

CONNECT_SECONDS = 12  # name look-up, connection and first byte together
STALL_SECONDS = 30  # silence in the middle of a download
CHUNK = 1 << 20


class Archive(NamedTuple):
    """A file on the web; `size` in bytes."""

    url: str
    size: int
    sha256: str

    @property
    def filename(self) -> str:
        """The last part of the address."""
        return self.url.rsplit("/", 1)[-1]


def find_archive(archive: Archive, path: str, data_dir: Path) -> Path:
    """Returns the verified archive: from `path` (a directory or the file), else downloaded.

    Downloads are kept in `<data_dir>/downloads`. Raises `UserError` when `path` does not hold
    the archive, its size or checksum is wrong, or the network is not reachable.
    """
    if path:
        place = Path(path).expanduser()
        found = place / archive.filename if place.is_dir() else place
        if not found.is_file():
            raise UserError(
                f"no {archive.filename} in dataset.path={path}: {_get_it(archive)}"
            )
        _verify(found, archive)
        return found
    found = data_dir / "downloads" / archive.filename
    if found.is_file():
        _verify(found, archive)
    else:
        _download(archive, found)
    return found


def _get_it(archive: Archive) -> str:
    return (
        f"put {archive.url} (sha256 {archive.sha256}) in a directory DIR "
        "and pass --config.dataset.path=DIR"
    )


def _verify(path: Path, archive: Archive) -> None:
    """Raises `UserError` unless the file has the size and the SHA-256 of `archive`."""
    try:
        size = path.stat().st_size
        if size != archive.size:
            raise UserError(
                f"{path} has {size:,} bytes instead of {archive.size:,}"
                f"{' (truncated?)' if size < archive.size else ''}: "
                f"delete it; {_get_it(archive)}"
            )
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if digest != archive.sha256:
        raise UserError(
            f"wrong checksum of {path}: sha256 {digest}, expected {archive.sha256}: "
            f"delete it; {_get_it(archive)}"
        )


def _connect(url: str) -> Any:
    """Opens `url` within CONNECT_SECONDS; a name look-up alone can hang for longer."""
    result: list[Any] = []

    def attempt() -> None:
        try:
            result.append(urllib.request.urlopen(url, timeout=STALL_SECONDS))
        except Exception as error:  # noqa: BLE001 (handed to the caller's thread)
            result.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    if not result:
        raise TimeoutError(f"no answer within {CONNECT_SECONDS} s")
    if isinstance(result[0], Exception):
        raise result[0]
    return result[0]


def _download(archive: Archive, target: Path) -> None:
    """Downloads to a temporary name beside `target` and renames it once it is verified."""
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with _connect(archive.url) as response:
            target.parent.mkdir(parents=True, exist_ok=True)
            label = f"downloading {archive.filename}"
            with partial.open("wb") as file, progress(label, archive.size) as advance:
                while chunk := response.read(CHUNK):
                    file.write(chunk)
                    advance(len(chunk))
        _verify(partial, archive)
        os.replace(partial, target)
    except UserError:
        raise
    except Exception as error:  # urllib, http, ssl and socket raise a zoo of types
        reason = " ".join(str(getattr(error, "reason", error)).split())
        raise UserError(
            f"cannot download {archive.url} ({reason}): without a network {_get_it(archive)}"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
