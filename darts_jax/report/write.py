"""Writing a report: one HTML file, and the same pictures in plots/."""

import os
import pathlib
from collections.abc import Sequence
from dataclasses import replace

from darts_jax.errors import UserError
from darts_jax.report import charts, page, shapes
from darts_jax.report.runs import Run, read_runs
from darts_jax.report.summary import (
    ReportSummary,
    by_dataset,
    final_accuracy,
    group_notes,
    headline_genotype,
)


def write_report(
    run_directories: Sequence[pathlib.Path], output: pathlib.Path | None = None
) -> ReportSummary:
    """Writes report.html and plots/*.svg about the runs together; returns the headline.

    output: a folder, or a file that ends in .html; the first directory when None.
    Raises UserError for a missing directory, one with no run in it, or no place to write.
    """
    runs = read_runs(run_directories)
    target = pathlib.Path(run_directories[0] if output is None else output)
    if target.suffix != ".html":
        target /= "report.html"
    histories = {run.label: charts.edge_histories(run) for run in runs}
    summary = _summarise(runs, target)
    html, pictures = page.render(runs, histories, summary)
    plots = {
        target.parent / "plots" / f"{name}.svg": pictures[name] for name in pictures
    }
    try:
        (target.parent / "plots").mkdir(parents=True, exist_ok=True)
        for path, picture in plots.items():
            _write(path, shapes.standalone(picture))
        _write(target, html)
    except OSError as error:
        raise UserError(f"cannot write {str(target)!r}: {error.strerror}") from None
    return replace(summary, plots=tuple(plots))


def _summarise(runs: Sequence[Run], target: pathlib.Path) -> ReportSummary:
    """Returns the headline: over the first data set with a retraining, else the first."""
    groups = by_dataset(runs)
    dataset = next(
        (
            name
            for name, roles in groups.items()
            if "derived" in roles or "random" in roles
        ),
        next(iter(groups)),
    )
    finals = {
        role: final_accuracy(members) for role, members in groups[dataset].items()
    }
    notes = [f"{run.label}: {note}" for run in runs for note in run.notes]
    notes += group_notes(groups)
    if len(groups) > 1:
        notes.append(
            f"several data sets ({', '.join(groups)}); the headline is of {dataset}"
        )
    return ReportSummary(
        path=target,
        plots=(),
        genotype=headline_genotype(runs),
        searched=finals.get("search"),
        derived=finals.get("derived"),
        random=finals.get("random"),
        notes=tuple(notes),
    )


def _write(path: pathlib.Path, text: str) -> None:
    """Writes a file so that a reader sees the old one or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
