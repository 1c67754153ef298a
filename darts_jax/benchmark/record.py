"""The record of a benchmark: ratios against a baseline, headline figures, the table."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from darts_jax.benchmark.measure import OURS
from darts_jax.benchmark.sizes import SIZES, WORKLOADS, Variant

FIRST = "search_step_first_order"
MIB = 2**20
DEFINITIONS = {
    "ratios": "the baseline's median step over ours, of steps taken in turn; peak_memory: "
    "ours over the baseline's, the largest of memory_ratios over the workloads that both "
    "run; second order: the finite difference on both sides; exact second order: the "
    "baseline's finite difference over our exact hypergradient",
    "compile_cold_s": "kernels_s + trace_s + compile_s of the first-order search step (or "
    "of the first workload measured) with empty caches; kernels_s: building kernels of our "
    "own; init_s, making the initial state, is not in it",
    "compile_warm_s": "the same in a second process with the caches of the first",
    "peak_resident_bytes": "of a process that started with warm caches, from after the "
    "first step to the last; in `cold`: of a process that compiled itself, from then on, "
    "over one step",
    "cold_memory_ratios": "memory_ratios with the peak of `cold` in the place of ours",
    "images_per_second": "train and valid batches both count",
    "flops, bytes_accessed, temporary_bytes": "XLA's own; its counts leave out kernels of "
    "our own",
    "bandwidth_bytes_per_second": "read and written by x + 1 in place, best of several, "
    "in the same process and minute",
    "floor_s": "floor_bytes over that bandwidth; floor_bytes: seeds x passes x 5 transfers "
    "x bytes of the precision x batch x floats an image, darts_jax/benchmark/floors.py",
    "share_of_floor": "floor_s over the median step; 1 is the floor",
}


def peak_bytes(figures: Mapping[str, Any]) -> int:
    """Returns the peak of the device's own memory, or of the process where it has none."""
    return figures.get("peak_device_bytes") or figures["peak_resident_bytes"]


def start_up(prepared: Mapping[str, Any]) -> float:
    """Returns the seconds from the initial state to a step that can run."""
    return prepared["kernels_s"] + prepared["trace_s"] + prepared["compile_s"]


def ratios_against(
    baseline: str, workloads: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, float | None]]:
    """Returns "ratios", "memory_ratios" and "cold_memory_ratios" of measured workloads.

    Args:
        baseline: its name in the entries.
        workloads: {workload: {implementation: figures}}.
    """
    ratios: dict[str, float | None] = {w.ratio: None for w in WORKLOADS.values()}
    memory: dict[str, float | None] = {}
    cold: dict[str, float | None] = {}
    for name, entry in workloads.items():
        theirs, ours = entry.get(baseline), entry[OURS]
        if theirs is None or "failed" in theirs:
            continue
        ratios[WORKLOADS[name].ratio] = theirs["median_s"] / ours["median_s"]
        memory[WORKLOADS[name].ratio] = peak_bytes(ours) / peak_bytes(theirs)
        cold[WORKLOADS[name].ratio] = peak_bytes(ours["cold"]) / peak_bytes(theirs)
    alike = [
        value
        for name in workloads
        if not WORKLOADS[name].baseline
        and (value := memory.get(WORKLOADS[name].ratio)) is not None
    ]
    ratios["peak_memory"] = max(alike, default=None)
    return {
        "ratios": ratios,
        "memory_ratios": memory,
        "cold_memory_ratios": cold,
    }


def make_record(
    size: str,
    workloads: Mapping[str, Mapping[str, Any]],
    hardware: Mapping[str, Any],
    baselines: Sequence[str],
    command: str,
) -> dict[str, Any]:
    """Returns the whole record, ready for JSON.

    Args:
        size: a name in SIZES.
        workloads: {workload: what `measure` returned}.
        hardware: what `survey` returned.
        baselines: names; the first one's ratios are `ratios`.
        command: the command line.
    """
    entry = workloads[FIRST if FIRST in workloads else next(iter(workloads))][OURS]
    record = {
        "command": command,
        "size": {"name": size, **SIZES[size]._asdict()},
        **hardware,
        "definitions": DEFINITIONS,
        "compile_cold_s": start_up(entry["cold"]),
        "compile_warm_s": start_up(entry),
        "workloads": workloads,
        "baselines": {name: ratios_against(name, workloads) for name in baselines},
        # Of the first baseline; without one there are the keys alone.
        **ratios_against(baselines[0] if baselines else "", workloads),
    }
    retrain = SIZES[size].retrain
    record["size"]["retrain"] = retrain._asdict() if retrain else None
    return record


def file_name(size: str, hardware: Mapping[str, Any]) -> str:
    """Returns `<size>[_<variant>]_<device kind>.json`.

    The kind is in lower case with dashes; of the variant stands what is not the default.
    """
    kind = re.sub(r"[^a-z0-9]+", "-", hardware["device_kind"].lower()).strip("-")
    parts = [size]
    for field, default in Variant._field_defaults.items():
        chosen = hardware.get(field, default)
        if chosen != default:
            parts.append(f"{chosen}{field if isinstance(chosen, int) else ''}")
    return f"{'_'.join([*parts, kind])}.json"


HEADER = (
    "workload",
    "",
    "step s",
    "min s",
    "images/s",
    "peak MiB",
    "temp MiB",
    "kernels s",
    "init s",
    "trace s",
    "compile s",
    "floor %",
)


def table(record: Mapping[str, Any]) -> list[str]:
    """Returns the record as lines of text: a row an implementation, then the ratios."""
    rows: list[tuple[str, ...]] = [HEADER]
    for workload, entry in record["workloads"].items():
        for name, figures in entry.items():
            if name == OURS:
                rows.append(_row(workload, f"{OURS}, cold", figures["cold"]))
            rows.append(_row(workload, name, figures))
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
    lines = []
    for row in rows:
        left = [f"{cell:{width}}" for cell, width in zip(row[:2], widths, strict=False)]
        right = [
            f"{cell:>{width}}" for cell, width in zip(row[2:], widths[2:], strict=True)
        ]
        lines.append("  ".join([*left, *right]).rstrip())
    for name, found in record["baselines"].items():
        ratios = {k: v for k, v in found["ratios"].items() if v is not None}
        if ratios:
            lines += ["", f"{name}'s time over ours (memory: ours over {name}'s)"]
        lines += [f"  {key:32} {value:7.2f}" for key, value in ratios.items()]
    return lines


def _row(workload: str, name: str, figures: Mapping[str, Any]) -> tuple[str, ...]:
    if "failed" in figures:
        return (workload, name, "failed", *[""] * (len(HEADER) - 3))

    def cell(key: str, form: str, unit: float = 1) -> str:
        value = figures.get(key)
        return "" if value is None else f"{value / unit:{form}}"

    return (
        workload,
        name,
        cell("median_s", ".4f"),
        cell("min_s", ".4f"),
        cell("images_per_second", ".1f"),
        f"{peak_bytes(figures) / MIB:.0f}",
        cell("temporary_bytes", ".0f", MIB),
        cell("kernels_s", ".1f"),
        cell("init_s", ".1f"),
        cell("trace_s", ".1f"),
        cell("compile_s", ".1f"),
        cell("share_of_floor", ".1f", 0.01),
    )
