"""A run directory: one run, one config, one writer; opening it again resumes the run.

Where several processes share a run, the first one writes; the others follow it in memory.

config.json     the resolved config     manifest.json   versions, devices, command, seed
metrics.jsonl   one row an epoch        metrics.csv     the same for a spreadsheet
timing.jsonl    seconds an epoch        genotypes.jsonl the derived genotype an epoch
checkpoints/    see checkpoints.py      tensorboard/    scalars
result.json     only of a complete run  lock            held while a process works here
stopped.json    of an epoch that a signal stopped: its step, and its seconds so far
"""

import errno
import fcntl
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from darts_jax.errors import UserError
from darts_jax.training import manifest, records
from darts_jax.training.same_run import LOCAL_FIELDS, check_same, check_same_data
from darts_jax.training.tensorboard import TensorBoard

ROWS = ("metrics", "genotypes", "timing")
LOCK = "lock"


class RunDirectory:
    """The open run: its rows and files; a context manager that gives the lock back.

    path: the directory. config: as recorded in config.json. resumed: whether it was there.
    moved: whether the data are said to be elsewhere than recorded, and not compared yet.
    leads: whether this process writes; one that follows keeps its rows in memory only.
    tensorboard: writes nothing if the config says so, or the run is followed.
    diverged: why its training cannot go on, in this process; empty while it can.
    """

    def __init__(self, path: Path, config: dict[str, Any], lock: TextIO | None) -> None:
        self.path = path
        self.config = config
        self.resumed = self.moved = False
        self.leads = lock is not None
        self.diverged = ""
        self.checkpoints = path / "checkpoints"
        self._lock = lock
        self._rows = {name: records.read_rows(path / f"{name}.jsonl") for name in ROWS}
        self.tensorboard = TensorBoard(
            path / "tensorboard", enabled=self.leads and config.get("tensorboard", True)
        )

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the TensorBoard file and gives the lock back."""
        self.tensorboard.close()
        if self._lock is not None:
            self._lock.close()

    @property
    def result(self) -> dict[str, Any] | None:
        """The content of result.json: None while the run is not complete."""
        path = self.path / "result.json"
        if not path.is_file():
            return None
        result = records.read_object(path)
        if "command" not in result:
            raise UserError(
                f"{path} is no result of a run; remove it, and the same command makes it "
                "anew from the last checkpoint"
            )
        return result

    def stands(self, found: Mapping[str, Any]) -> bool:
        """Whether the run is complete, and its data need not be compared once more.

        They are where they were, and `found`, a part of their fingerprint, is as recorded.
        """
        recorded = read_manifest(self.path).get("data", {})
        same = all(recorded.get(name) == value for name, value in found.items())
        return self.result is not None and not self.moved and same

    def bind_data(self, found: Mapping[str, Any]) -> None:
        """Records the fingerprint of a new run's data, and compares a resumed one's.

        Their place is recorded once they are known to be the same.

        Raises:
            UserError: the run was started on other data.
        """
        made = read_manifest(self.path)
        if self.resumed and "data" in made:
            check_same_data(self.path, made["data"], found)
        else:  # new, or of a version that did not record it
            self.write_json("manifest.json", made | {"data": found})
        if (
            self.resumed
            and records.read_object(self.path / "config.json") != self.config
        ):
            self.write_json("config.json", self.config)
        self.moved = False

    def write_json(self, name: str, value: Any) -> None:
        """Writes `value` to the file `name` of the run, atomically."""
        if self.leads:
            records.write_json(self.path / name, value)

    def append(self, name: str, row: Mapping[str, Any]) -> None:
        """Appends a row with an "epoch" to the file `name`.jsonl, a name in ROWS.

        It is on the disk on return. The row of "metrics" also goes to metrics.csv.
        """
        if name not in ROWS:
            raise ValueError(f"no rows {name!r}: {', '.join(ROWS)}")
        self._rows[name].append(records.plain(row))
        if self.leads:
            records.append_row(self.path / f"{name}.jsonl", row)
        if name == "metrics":
            self._write_csv()

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Returns the whole rows of `name`.jsonl."""
        return list(self._rows[name])

    def truncate_after(self, epoch: int) -> None:
        """Drops rows of later epochs than `epoch` (-1: all) and torn ones, to resume."""
        for name in ROWS:
            path = self.path / f"{name}.jsonl"
            keep = records.truncate_rows if self.leads else records.rows_until
            self._rows[name] = keep(path, epoch)
        rows = self._rows["metrics"]
        self.tensorboard.last_step = rows[-1].get("step", 0) if rows else -1
        if rows or (self.path / "metrics.csv").is_file():
            self._write_csv()

    def _write_csv(self) -> None:
        if self.leads:
            text = records.to_csv(self._rows["metrics"])
            records.write_atomic(self.path / "metrics.csv", text)


def open_run(
    workdir: Path, command: str, config: Mapping[str, Any], argv: Sequence[str]
) -> RunDirectory:
    """Creates the run directory, or opens it again to resume, and takes its lock.

    command: "search" or "retrain". config: resolved. argv: for the manifest.

    Raises:
        UserError: another process has it, another command or config made it, it holds
            files of something else, or it cannot be written.
    """
    path = Path(workdir).absolute()
    resolved = records.plain(config)
    try:
        path.mkdir(parents=True, exist_ok=True)
        _check_is_run_or_empty(path, command)
        lock = _take_lock(path)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        reason = error.strerror or str(error)
        raise UserError(f"cannot use run directory {workdir}: {reason}") from error
    try:
        run = RunDirectory(path, resolved, lock)
        if _has_progress(path):
            _resume(run, command, argv)
        else:  # what a run leaves that failed before its first epoch binds nobody
            seed = int(resolved.get("seed", 0))
            run.write_json("manifest.json", manifest.describe(command, argv, seed))
            run.write_json("config.json", resolved)  # last: it makes the folder a run
        return run
    except BaseException:
        lock.close()
        raise


def follow_run(workdir: Path, command: str, config: Mapping[str, Any]) -> RunDirectory:
    """Returns the run that the first process has opened, for another of its processes.

    Raises:
        UserError: this process has another command or config than the first.
    """
    path = Path(workdir).absolute()
    made_by, recorded = read_run(path)
    run = RunDirectory(path, records.plain(config), None)
    # All processes together decide when to log and to save, and wait for each other then.
    check_same(run.path, (made_by, recorded), (command, run.config), LOCAL_FIELDS)
    run.resumed = _has_progress(path)
    return run


def read_run(workdir: Path) -> tuple[str, dict[str, Any]]:
    """Returns the command and the config of the run in `workdir`, to read only.

    Raises:
        UserError: there is no run.
    """
    path = Path(workdir)
    for name in ("config.json", "manifest.json"):
        if not (path / name).is_file():
            raise UserError(f"no run in {str(workdir)!r}: it has no {name}")
    return str(read_manifest(path).get("command")), records.read_object(
        path / "config.json"
    )


def read_manifest(workdir: Path) -> dict[str, Any]:
    """Returns the manifest of the run in `workdir`; raises UserError if unreadable."""
    return records.read_object(Path(workdir) / "manifest.json")


def _check_is_run_or_empty(path: Path, command: str) -> None:
    """Raises UserError for a folder with files that no run of ours has left there."""
    made_by = None
    if (path / "manifest.json").is_file():
        made_by = read_manifest(path).get("command")
    ours = {LOCK}
    if made_by in ("search", "retrain"):
        ours.add("manifest.json")  # all that a process killed at the start leaves
        if (path / "config.json").is_file():
            # Before the first epoch only a retraining has a genotype of its own.
            own = made_by == command == "retrain" or _has_progress(path)
            if own or not (path / "genotype.json").exists():
                return
            raise UserError(
                f"run directory {path} holds a genotype.json that no run has made there; "
                "name a new or an empty folder"
            )
    others = sorted(
        p.name
        for p in path.iterdir()
        if p.name not in ours and not (p.name[0] == "." and p.suffix == ".tmp")
    )
    if others:
        raise UserError(
            f"run directory {path} holds other files ({', '.join(others[:3])}) and no "
            "run; name a new or an empty folder"
        )


def _take_lock(path: Path) -> TextIO:
    """Locks the run for this process; the system frees the lock when the process ends."""
    lock = open(path / LOCK, "a+", encoding="utf-8")  # noqa: SIM115 (held until close)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.seek(0)
        holder = lock.read().strip() or "unknown"
        lock.close()
        raise UserError(
            f"run directory {path} is in use by process {holder}"
        ) from error
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    return lock


def _has_progress(path: Path) -> bool:
    """Whether there is anything in the run that another config could spoil."""
    saved = [path / "result.json", path / "metrics.jsonl"]
    return any(p.is_file() for p in saved) or any(path.glob("checkpoints/*"))


def _resume(run: RunDirectory, command: str, argv: Sequence[str]) -> None:
    made_by, recorded = read_run(run.path)
    check_same(run.path, (made_by, recorded), (command, run.config))
    run.moved = any(
        recorded["dataset"].get(field) != run.config["dataset"].get(field)
        for field in ("path", "data_dir")
        if "dataset" in recorded and "dataset" in run.config
    )
    made = read_manifest(run.path)
    restart = manifest.describe_restart(argv)
    made["restarts"] = [*(made.get("restarts") or []), restart]
    run.write_json("manifest.json", made)
    run.resumed = True
