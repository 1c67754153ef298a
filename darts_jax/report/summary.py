"""What a report says in numbers: groups of runs, their finals, and lines for a terminal."""

import math
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from darts_jax.genotype import Genotype, pretty
from darts_jax.notation import shown
from darts_jax.report.runs import Run, Statistic, flatten, statistic

ROLES = {
    "search": "searches",
    "derived": "retrainings of derived genotypes",
    "random": "retrainings of random genotypes",
}
TRAINING_DATA = {"training images", "image shape", "classes", "mean", "std"}
# What may differ between runs that are averaged: the seeds, and what they lead to.
_FREE = ("seed", "genotype", "genotype_seed", "workdir", "progress", "log_every_steps")


@dataclass(frozen=True)
class ReportSummary:
    """Where a report was written, and its headline numbers (accuracies in [0, 1]).

    searched: valid accuracy at the end of the searches; derived, random: test accuracy of the
    retrained networks, over the runs of the first data set; None where there is no run.
    """

    path: pathlib.Path
    plots: tuple[pathlib.Path, ...]
    genotype: Genotype | None
    searched: Statistic | None
    derived: Statistic | None
    random: Statistic | None
    notes: tuple[str, ...]


def summary_lines(summary: ReportSummary) -> list[str]:
    """Returns the headline of a report as lines for a terminal."""
    lines = pretty(summary.genotype).splitlines() if summary.genotype else []
    rows = [
        ("valid accuracy, search", accuracy_text(summary.searched)),
        ("test accuracy, derived genotypes", accuracy_text(summary.derived)),
        ("test accuracy, random genotypes", accuracy_text(summary.random)),
        ("derived - random", difference_text(summary.derived, summary.random)),
    ]
    shown = [(name, value) for name, value in rows if value is not None]
    width = max((len(name) for name, _ in shown), default=0)
    lines += [f"{name:<{width}}  {value}" for name, value in shown]
    lines += [f"note: {note}" for note in summary.notes]
    return [*lines, f"report: {summary.path}"]


def final_accuracy(runs: Sequence[Run]) -> Statistic | None:
    """Returns the statistic over the finished runs."""
    return statistic(run.score for run in runs)


def accuracy_text(accuracy: Statistic | None) -> str | None:
    """Returns "97.00 ± 0.10 % (n = 3)", without ± for a single run; None for no run."""
    if accuracy is None:
        return None
    spread = "" if accuracy.std is None else f" \u00b1 {100 * accuracy.std:.2f}"
    return f"{100 * accuracy.mean:.2f}{spread} % (n = {accuracy.n})"


def difference_text(first: Statistic | None, second: Statistic | None) -> str | None:
    """Returns the difference of two means in percentage points.

    With its standard error, sqrt(s1^2 / n1 + s2^2 / n2) (Welch 1947), where both have a spread.
    """
    if first is None or second is None:
        return None
    text = f"{100 * (first.mean - second.mean):+.2f} points"
    if first.std is None or second.std is None:
        return text
    error = math.sqrt(first.std**2 / first.n + second.std**2 / second.n)
    return f"{text} (standard error {100 * error:.2f})"


def by_dataset(runs: Sequence[Run]) -> dict[str, dict[str, list[Run]]]:
    """Returns {data set: {role: runs}}; accuracies on two data sets have no common mean.

    A folder has the name of its path. What two runs found in their data says whether it is
    the same set: it may have moved, and two places may have one name.
    """
    groups: list[list[Run]] = []
    for run in runs:
        for group in groups:
            if all(_same_data(run, other) for other in group):
                group.append(run)
                break
        else:
            groups.append([run])
    named: dict[str, list[Run]] = {}
    for group in groups:
        name, number = group[0].dataset, 1
        while name in named:
            number += 1
            name = f"{group[0].dataset} #{number}"
        named[name] = group
    return {
        name: {
            role: members
            for role in ROLES
            if (members := [run for run in group if run.role == role])
        }
        for name, group in named.items()
    }


def _same_data(first: Run, second: Run) -> bool:
    """Whether two runs are of one data set, as far as can be told."""
    names = [run.dataset.partition(" ")[0] for run in (first, second)]
    if names[0] != names[1]:
        return False
    one, other = first.manifest.get("data"), second.manifest.get("data")
    if names[0] != "folder" or not (isinstance(one, dict) and isinstance(other, dict)):
        return first.dataset == second.dataset
    # Only retrainings know the test images: of both commands, the training images speak.
    known = {*one, *other} if first.command == second.command else TRAINING_DATA
    return all(one.get(field) == other.get(field) for field in known)


def group_notes(groups: dict[str, dict[str, list[Run]]]) -> list[str]:
    """Returns a warning for each set of compared runs whose configs differ beyond the seed."""
    notes = []
    for dataset, roles in groups.items():
        retrained = roles.get("derived", []) + roles.get("random", [])
        for what, runs in (
            ("searches", roles.get("search", [])),
            ("retrainings", retrained),
        ):
            fields = differing_fields(runs)
            if fields:
                notes.append(f"{what} on {dataset} differ in {', '.join(fields)}")
        # What searches of several seeds have found belongs together; what is named does not.
        names = {run.genotype: _named(run) for run in roles.get("derived", [])}
        if len(names) > 1 and any(names.values()):
            several = ", ".join(sorted(filter(None, names.values())))
            more = " and derived ones" if None in names.values() else ""
            notes.append(
                f"one mean of different genotypes on {dataset}: {several}{more}"
            )
        for members in roles.values():
            notes += [
                f"{' and '.join(labels)} are of the same seed: counted as {len(labels)} runs"
                for labels in _repeated(members)
            ]
    return notes


def _repeated(runs: Sequence[Run]) -> list[list[str]]:
    """Returns the labels of finished runs that are no independent ones: copies of a run."""
    found: dict[tuple[Any, ...], list[str]] = {}
    for run in runs:
        if run.score is not None and "seed" in run.config:
            drawn = run.config.get("genotype_seed") if run.role == "random" else None
            trained = None if run.command == "search" else run.genotype
            key = str(run.config["seed"]), str(drawn), trained
            found.setdefault(key, []).append(run.label)
    return [labels for labels in found.values() if len(labels) > 1]


def _named(run: Run) -> str | None:
    """Returns the zoo's name or the text that a genotype was given by, None for a file."""
    given = str(run.config.get("genotype") or "")
    return None if not given or given.endswith(".json") else shown(given)


def differing_fields(runs: Sequence[Run]) -> list[str]:
    """Returns the config fields, seeds aside, that are not the same in all runs."""
    configs = [flatten(run.config) for run in runs if run.config]
    names = {name for config in configs for name in config if name not in _FREE}
    return sorted(
        name for name in names if len({config.get(name) for config in configs}) > 1
    )


def headline_genotype(runs: Sequence[Run]) -> Genotype | None:
    """Returns the genotype of the first search, else of the first retraining."""
    ordered = sorted(runs, key=lambda run: list(ROLES).index(run.role))
    return next((run.genotype for run in ordered if run.genotype is not None), None)


def distinct_genotypes(runs: Sequence[Run]) -> dict[Genotype, list[Run]]:
    """Returns {genotype: its runs}, those of the searches first."""
    found: dict[Genotype, list[Run]] = {}
    for run in sorted(runs, key=lambda run: list(ROLES).index(run.role)):
        if run.genotype is not None:
            found.setdefault(run.genotype, []).append(run)
    return found
