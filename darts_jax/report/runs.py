"""Reading run directories for a report, and the statistics over their seeds.

What stands in a run directory may be torn, unfinished or made by hand, so every value is
checked where it is read, and what cannot be used becomes a note instead of a failure.
"""

import json
import math
import pathlib
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from darts_jax.errors import UserError
from darts_jax.genotype import Genotype

COMMANDS = ("search", "retrain")
_MARKS = ("manifest.json", "config.json", "result.json", "metrics.jsonl")


@dataclass(frozen=True)
class Run:
    """One run directory as read; `result` is None while the run is unfinished."""

    path: pathlib.Path
    label: str
    command: str
    config: dict[str, Any]
    manifest: dict[str, Any]
    result: dict[str, Any] | None
    metrics: list[dict[str, Any]]
    timing: list[dict[str, Any]]
    genotypes: list[dict[str, Any]]
    genotype: Genotype | None
    notes: list[str] = field(default_factory=list)

    @property
    def role(self) -> str:
        """Returns "search", "derived" or "random"."""
        if self.command == "search":
            return "search"
        return "random" if self.config.get("genotype") == "random" else "derived"

    @property
    def dataset(self) -> str:
        """Returns the name of the data set, "unknown" where the config has none.

        Folders of images are told apart by their paths.
        """
        name = str(lookup(self.config, "dataset", "name") or "unknown")
        place = lookup(self.config, "dataset", "path") if name == "folder" else ""
        return f"{name} {place}" if place else name

    @property
    def score(self) -> float | None:
        """Returns the final accuracy in [0, 1]: valid of a search, test of a retraining."""
        split = "valid" if self.command == "search" else "test"
        return number((self.result or {}).get(f"{split}_accuracy"))


@dataclass(frozen=True)
class Statistic:
    """Mean and sample standard deviation (None for n = 1) of n finite values."""

    n: int
    mean: float
    std: float | None
    minimum: float
    maximum: float


def statistic(values: Iterable[float | None]) -> Statistic | None:
    """Returns the statistic of the finite values, None where there is none."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    if not finite:
        return None
    std = statistics.stdev(finite) if len(finite) > 1 else None
    return Statistic(
        len(finite), statistics.fmean(finite), std, min(finite), max(finite)
    )


def number(value: object) -> float | None:
    """Returns `value` as a finite float, None for NaN, infinities and anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        result = float(value)
    except OverflowError:
        return None
    return result if math.isfinite(result) else None


def lookup(tree: object, *keys: str) -> Any:
    """Returns the value at a path of keys in nested dicts, None where it ends early."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Returns nested dicts as {"dataset.name": text}, leaves in JSON form."""
    rows: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            rows |= flatten(value, f"{prefix}{key}.")
        else:
            rows[f"{prefix}{key}"] = (
                value if isinstance(value, str) else json.dumps(value)
            )
    return rows


def read_genotype(value: object) -> Genotype | None:
    """Returns the genotype of its JSON form, None where it is not one."""
    if not isinstance(value, dict):
        return None
    try:
        return Genotype.from_json(value)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return None


def read_runs(run_directories: Sequence[pathlib.Path]) -> list[Run]:
    """Returns the runs of the directories; one that only holds others stands for its runs.

    Raises UserError for a missing directory and for one with no run in it.
    """
    if not run_directories:
        raise UserError("no run directory given; name one or more, such as runs/s0")
    folders: dict[pathlib.Path, pathlib.Path] = {}
    for directory in map(pathlib.Path, run_directories):
        if not directory.is_dir():
            raise UserError(f"run directory {str(directory)!r} does not exist")
        found = _runs_in(directory, levels=2)
        if not found:
            raise UserError(
                f"no run in {str(directory)!r}: a run directory holds {' or '.join(_MARKS)}"
            )
        folders |= {folder.resolve(): folder for folder in found}
    labels = _labels(list(folders))
    return [
        read_run(folder, label) for folder, label in zip(folders, labels, strict=True)
    ]


def read_run(path: pathlib.Path, label: str) -> Run:
    """Returns the run at `path`; whatever is missing or torn there becomes a note."""
    notes: list[str] = []
    config = _read_object(path / "config.json", notes)
    manifest = _read_object(path / "manifest.json", notes)
    result = _read_object(path / "result.json", notes) or None
    metrics = _read_rows(path / "metrics.jsonl", notes)
    timing = _read_rows(path / "timing.jsonl", notes)
    genotypes = _read_rows(path / "genotypes.jsonl", notes)
    command = manifest.get("command") or (result or {}).get("command")
    if command not in COMMANDS:
        command = "search" if genotypes else "retrain"
        notes.append(f"names no command of {', '.join(COMMANDS)}; read as a {command}")
    if result is None:
        planned = number(config.get("num_epochs"))
        of = f" of {planned:g}" if planned is not None else ""
        notes.append(f"unfinished: {len(metrics)}{of} epochs, no result.json")
    candidates = [
        _read_object(path / "genotype.json", notes) or None,
        (result or {}).get("genotype"),
        genotypes[-1].get("genotype") if genotypes else None,
    ]
    genotype = next(filter(None, map(read_genotype, candidates)), None)
    if genotype is None and any(candidates):
        notes.append("its genotype cannot be read")
    run = Run(
        path,
        label,
        command,
        config,
        manifest,
        result,
        metrics,
        timing,
        genotypes,
        genotype,
        notes,
    )
    if result is not None and run.score is None:
        notes.append("finished without a finite accuracy; left out of the mean")
    return run


def _is_run(folder: pathlib.Path) -> bool:
    return folder.is_dir() and any((folder / mark).is_file() for mark in _MARKS)


def _runs_in(folder: pathlib.Path, levels: int) -> list[pathlib.Path]:
    """Returns the folder if it is a run, else those so many levels below: of many seeds."""
    if _is_run(folder):
        return [folder]
    if not levels or not folder.is_dir():
        return []
    return [
        run for child in sorted(folder.iterdir()) for run in _runs_in(child, levels - 1)
    ]


def _labels(folders: list[pathlib.Path]) -> list[str]:
    """Returns the shortest ends of the paths that tell them apart."""
    for depth in range(1, max(len(folder.parts) for folder in folders) + 1):
        labels = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(labels)) == len(labels):
            return labels
    return [str(folder) for folder in folders]


def _read_object(path: pathlib.Path, notes: list[str]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        return value
    notes.append(f"{path.name} is not a JSON object; ignored")
    return {}


def _read_rows(path: pathlib.Path, notes: list[str]) -> list[dict[str, Any]]:
    """Returns the rows in order of epoch; of an epoch written twice the later row counts."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").rstrip("\n").split("\n")
    rows: dict[int, dict[str, Any]] = {}
    for index, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        epoch = row.get("epoch") if isinstance(row, dict) else None
        if isinstance(row, dict) and type(epoch) is int and 0 <= epoch < 10**9:
            rows[epoch] = row
        else:
            what = "torn last line" if index == len(lines) - 1 else f"line {index + 1}"
            notes.append(f"{path.name}: {what} ignored")
    return [rows[epoch] for epoch in sorted(rows)]
