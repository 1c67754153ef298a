"""From the rows of runs to pictures: curves over seeds and the history of the edge weights."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from darts_jax.errors import UserError
from darts_jax.report.edge_charts import EdgeHistory, Matrix
from darts_jax.report.line_chart import Line, chart
from darts_jax.report.palette import Pen
from darts_jax.report.runs import Run, lookup, number, read_genotype, statistic
from darts_jax.spaces import SPACES, Space

_SPLITS = {"train": "separable", "valid": "skip", "test": "skip"}
_KINDS = ("separable", "skip", "dilated", "convolution")


def curve_over_runs(
    label: str, pen: Pen, rows: Sequence[Sequence[Any]], key: str
) -> Line:
    """Returns the mean of `key` over runs at each epoch, with a band from least to greatest.

    rows: per run its rows. An epoch at which no run has a finite value is a gap; an epoch
    whose rows lack the key, as between two evaluations, is passed over.
    """
    values: dict[int, list[float | None]] = {}
    for run_rows in rows:
        for row in run_rows:
            if key in row:
                values.setdefault(row["epoch"], []).append(number(row[key]))
    epochs = sorted(values)
    spread = [statistic(values[epoch]) for epoch in epochs]
    mean = [s.mean if s else None for s in spread]
    if len(rows) < 2:
        return Line(label, pen, epochs, mean)
    low = [s.minimum if s else None for s in spread]
    high = [s.maximum if s else None for s in spread]
    return Line(label, pen, epochs, mean, low, high)


def search_pictures(runs: Sequence[Run]) -> dict[str, str]:
    """Returns {name: picture} of the searches' losses, accuracies, entropies and skips."""
    rows = [run.metrics for run in runs]
    pictures = {
        f"search_{measure}": chart(
            f"Search: {measure}",
            [
                curve_over_runs(split, Pen(_SPLITS[split]), rows, f"{split}_{measure}")
                for split in ("train", "valid")
            ],
            y_label=measure,
            percent=measure == "accuracy",
        )
        for measure in ("loss", "accuracy")
    }
    levels = dict(
        _uniform(space) for run in runs if (space := space_of(run)) is not None
    )
    pictures["entropy"] = chart(
        "Entropy of the edge weights, mean over edges",
        _kind_lines(rows, "entropy_"),
        y_label="nats",
        references=list(levels.items()),
        floor=0.0,
    )
    pictures["skip_connections"] = chart(
        "skip_connect in the derived genotype",
        _kind_lines(rows, "skips_"),
        y_label="edges",
        floor=0.0,
        whole=True,
    )
    return pictures


def retrain_pictures(groups: Mapping[str, list[Run]]) -> dict[str, str]:
    """Returns {name: picture} of the retrainings' losses and accuracies.

    groups: {"derived" or "random": runs}; the second is drawn dashed.
    """
    pictures = {}
    for measure in ("loss", "accuracy"):
        lines = [
            curve_over_runs(
                f"{split}, {role}" if len(groups) > 1 else split,
                Pen(_SPLITS[split], "5 3" if role == "random" else ""),
                [run.metrics for run in runs],
                f"{split}_{measure}",
            )
            for role, runs in groups.items()
            for split in ("train", "test")
        ]
        pictures[f"retrain_{measure}"] = chart(
            f"Retraining: {measure}",
            lines,
            y_label=measure,
            percent=measure == "accuracy",
        )
    return pictures


def timing_picture(runs: Sequence[Run]) -> str:
    """Returns the seconds of each epoch, searches and retrainings apart."""
    commands = {run.command: "skip" for run in runs} | {"search": "separable"}
    lines = [
        curve_over_runs(
            command,
            Pen(colour),
            [run.timing for run in runs if run.command == command],
            "seconds",
        )
        for command, colour in sorted(commands.items(), reverse=True)
    ]
    return chart("Time of an epoch", lines, y_label="seconds", floor=0.0)


def edge_histories(run: Run) -> list[EdgeHistory]:
    """Returns the edge weights of each cell kind; rows of another shape are left out.

    A run that holds unusable rows, or whose primitives are not known, gets a note.
    """
    found: dict[str, list[tuple[int, Matrix]]] = {}
    for row in run.genotypes:
        kinds = row.get("edge_weights")
        for kind, value in (kinds if isinstance(kinds, dict) else {}).items():
            matrix = _matrix(value)
            if matrix is not None:
                found.setdefault(kind, []).append((row["epoch"], matrix))
    last = read_genotype(run.genotypes[-1].get("genotype")) if run.genotypes else None
    genotype = last or run.genotype
    space = space_of(run)
    histories = []
    for kind, rows in found.items():
        shape = _shape(rows[-1][1])
        kept = [(epoch, matrix) for epoch, matrix in rows if _shape(matrix) == shape]
        if len(kept) < len(rows):
            run.notes.append(f"genotypes.jsonl: {kind} rows of another shape ignored")
        cell = genotype.cells.get(kind) if genotype else None
        recorded = _primitives(run.genotypes[-1], shape[1])
        edges = _all_edges(shape[0], cell.num_inputs if cell else 2)
        fits = space is not None and shape == (space.num_edges, len(space.primitives))
        if space is not None and fits and recorded in (None, space.primitives):
            edges, primitives = space.edges, space.primitives
            if kind in space.cell_kinds:
                kept = [(e, _masked(m, space.mask(kind).tolist())) for e, m in kept]
        elif recorded is not None:
            primitives = recorded
        else:
            run.notes.append(f"the primitives of the {kind} edge weights are not known")
            primitives = tuple(f"operation {i}" for i in range(shape[1]))
        epochs, matrices = [e for e, _ in kept], [m for _, m in kept]
        histories.append(EdgeHistory(kind, edges, primitives, epochs, matrices, cell))
    return histories


def space_of(run: Run) -> Space | None:
    """Returns the search space that a run's config names, None where it cannot be built."""
    build = SPACES.get(str(run.config.get("space")))
    if build is None or lookup(run.config, "model", "edge_primitives"):
        return None  # per-edge lists lie in a file outside of the run
    options = {
        name: value
        for name in ("num_nodes", "primitives")
        if (value := lookup(run.config, "model", name))
    }
    try:
        return build(**options)
    except (UserError, TypeError):
        return None


def _uniform(space: Space) -> tuple[str, float]:
    """Returns the name and the mean over edges of the entropy of equal edge weights."""
    counts = [
        len(space.allowed(kind, edge))
        for kind in space.cell_kinds
        for edge in range(space.num_edges)
    ]
    over = f" over {counts[0]}" if len(set(counts)) == 1 else ""
    return f"uniform{over}", sum(map(math.log, counts)) / len(counts)


def _kind_lines(rows: Sequence[Sequence[Any]], prefix: str) -> list[Line]:
    keys = {key for run in rows for row in run for key in row if key.startswith(prefix)}
    return [
        curve_over_runs(
            key.removeprefix(prefix), Pen(_KINDS[i % len(_KINDS)]), rows, key
        )
        for i, key in enumerate(sorted(keys))
    ]


def _matrix(value: object) -> Matrix | None:
    """Returns a rectangular [E, O] with None for values that are not finite."""
    if not isinstance(value, list) or not value:
        return None
    if not all(isinstance(row, list) and row for row in value):
        return None
    if len({len(row) for row in value}) != 1:
        return None
    return [[number(entry) for entry in row] for row in value]


def _primitives(row: dict[str, Any], number: int) -> tuple[str, ...] | None:
    """Returns the row's own names of its `number` columns, None where it has none."""
    names = row.get("primitives")
    if not isinstance(names, list) or len(names) != number:
        return None
    return tuple(names) if all(isinstance(name, str) for name in names) else None


def _shape(matrix: Matrix) -> tuple[int, int]:
    return len(matrix), len(matrix[0])


def _masked(matrix: Matrix, mask: list[list[bool]]) -> Matrix:
    return [
        [value if allowed else None for value, allowed in zip(*rows, strict=True)]
        for rows in zip(matrix, mask, strict=True)
    ]


def _all_edges(num_edges: int, num_inputs: int) -> tuple[tuple[int, int], ...]:
    """Returns the first edges of a cell in which every node may receive every earlier one."""
    edges: list[tuple[int, int]] = []
    target = num_inputs
    while len(edges) < num_edges:
        edges += [(source, target) for source in range(target)]
        target += 1
    return tuple(edges[:num_edges])
