"""Files of a run that survive a kill: atomic JSON, and rows of one JSON object a line."""

import contextlib
import csv
import io
import json
import math
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from darts_jax.errors import UserError

FIRST_COLUMNS = ("epoch", "step")


def write_atomic(path: Path, text: str) -> None:
    """Replaces the file at `path` so that a reader or a kill sees the old or the new."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON with sorted keys, atomically; NaN becomes null."""
    text = json.dumps(plain(value), indent=2, sort_keys=True, allow_nan=False)
    write_atomic(path, text + "\n")


def read_object(path: Path) -> dict[str, Any]:
    """Returns the JSON object in the file; raises UserError if there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object")
    return value


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Appends `row` as one line of JSON and waits until it is on the disk."""
    line = json.dumps(plain(row), sort_keys=True, allow_nan=False) + "\n"
    with open(path, "a", encoding="utf-8") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Returns the whole rows; none where there is no file. A torn one is passed over."""
    return _parsed(path.read_bytes())[0] if path.is_file() else []


def _parsed(content: bytes) -> tuple[list[dict[str, Any]], int]:
    """Returns the whole rows, and how many lines before the last one hold none."""
    rows: list[dict[str, Any]] = []
    lines = content.splitlines(keepends=True)
    torn = 0
    for number, line in enumerate(lines, start=1):
        row = None
        if line.endswith(b"\n"):
            with contextlib.suppress(ValueError):
                row = json.loads(line)
        if isinstance(row, dict):
            rows.append(row)
        elif number < len(lines):
            torn += 1
    return rows, torn


def rows_until(path: Path, epoch: int) -> list[dict[str, Any]]:
    """Returns the whole rows of epochs up to `epoch`."""
    return [row for row in read_rows(path) if row.get("epoch", epoch + 1) <= epoch]


def truncate_rows(path: Path, epoch: int) -> list[dict[str, Any]]:
    """Drops torn rows and those of later epochs than `epoch`; returns what is left.

    A kill tears the last row only. Where others are, someone else wrote here: what was there
    is kept beside it, and a line on stderr says so.
    """
    if not path.is_file():
        return []
    content, rows = path.read_bytes(), rows_until(path, epoch)
    text = "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows)
    if text.encode() == content:
        return rows
    if torn := _parsed(content)[1]:
        kept = path.with_name(f"{path.name}.damaged")
        kept.write_bytes(content)
        print(
            f"warning: {path.name}: {torn} damaged rows left out; {kept} has them",
            file=sys.stderr,
        )
    write_atomic(path, text)
    return rows


def to_csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """Returns the rows as CSV: epoch, step, then every other column by name."""
    rows = list(rows)
    names = {name for row in rows for name in row}
    first = [name for name in FIRST_COLUMNS if name in names]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, first + sorted(names.difference(first)))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def plain(value: Any) -> Any:
    """Returns `value` in JSON's types: arrays as lists, paths as text, NaN as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns `{"section.field": value}` of a nested dict."""
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
