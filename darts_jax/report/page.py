"""The HTML page: sections as plain functions from runs to escaped markup.

No script and no address outside of the file: a report must read the same in ten years, from a
mail attachment, and on paper. `Plots` collects the same pictures for plots/*.svg.
"""

import re
from collections.abc import Mapping, Sequence

from darts_jax.genotype import Genotype, pretty
from darts_jax.report import charts, draw, edge_charts, tables
from darts_jax.report.palette import STYLESHEET
from darts_jax.report.runs import Run
from darts_jax.report.shapes import escape
from darts_jax.report.style import CSS
from darts_jax.report.summary import (
    ROLES,
    ReportSummary,
    accuracy_text,
    by_dataset,
    difference_text,
    distinct_genotypes,
    final_accuracy,
)

Plots = dict[str, str]  # {file name without its ending: picture}
Histories = Mapping[str, Sequence[edge_charts.EdgeHistory]]  # {label of a run: kinds}


def render(
    runs: Sequence[Run], histories: Histories, summary: ReportSummary
) -> tuple[str, Plots]:
    """Returns the page and its pictures by name."""
    plots: Plots = {}
    sections = {
        "Genotype": _genotypes(runs, plots),
        "Results": _results(runs),
        "Edge weights": _edge_weights(histories, plots),
        "Curves": _curves(runs, plots),
        "Time": _timing(runs, plots),
        "Configuration": _settings(runs),
        "Versions and hardware": _versions(runs),
    }
    sections = {name: body for name, body in sections.items() if body}
    links = "".join(f'<a href="#{_slug(name)}">{name}</a>' for name in sections)
    body = "".join(
        f'<section id="{_slug(name)}"><h2>{name}</h2>{content}</section>'
        for name, content in sections.items()
    )
    title = _title(runs)
    page = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{CSS}{STYLESHEET}</style></head><body>"
        f"<header><h1>{escape(title)}</h1>{_headline(runs, summary)}"
        f"<nav>{links}</nav></header><main>{body}</main></body></html>\n"
    )
    return page, plots


def _title(runs: Sequence[Run]) -> str:
    names = {"search": "architecture search", "retrain": "retraining"}
    what = " and ".join(
        name for key, name in names.items() if any(run.command == key for run in runs)
    )
    datasets = ", ".join(dict.fromkeys(run.dataset for run in runs))
    return f"{what[:1].upper()}{what[1:]} on {datasets}"


def _headline(runs: Sequence[Run], summary: ReportSummary) -> str:
    counts = []
    for role, name in ROLES.items():
        members = [run for run in runs if run.role == role]
        if members:
            finished = sum(run.result is not None for run in members)
            state = "" if finished == len(members) else f" ({finished} finished)"
            counts.append(f"{len(members)} {_plural(name, len(members))}{state}")
    cards = [
        ("test accuracy, derived genotypes", accuracy_text(summary.derived)),
        ("test accuracy, random genotypes", accuracy_text(summary.random)),
        ("derived \u2212 random", difference_text(summary.derived, summary.random)),
        ("valid accuracy, search", accuracy_text(summary.searched)),
    ]
    shown = "".join(_card(name, value) for name, value in cards if value is not None)
    facts = tables.facts(runs)
    notes = "".join(f"<li>{escape(note)}</li>" for note in summary.notes)
    box = f"<aside><b>Notes</b><ul>{notes}</ul></aside>" if notes else ""
    empty = '<p class="lead">No run has finished yet.</p>' if not shown else ""
    return (
        f'<p class="lead">{escape("; ".join(counts))}. {escape(facts)}</p>'
        f'{empty}<div class="cards">{shown}</div>{box}'
    )


def _card(name: str, value: str) -> str:
    """Returns one headline number; a standard error in it joins the small print."""
    number, extra, error = value.partition(" (standard error")
    small = f"{name}{extra}{error}"
    return (
        f'<div class="card"><b>{escape(number)}</b><span>{escape(small)}</span></div>'
    )


def _plural(name: str, count: int) -> str:
    if count > 1:
        return name
    single = {
        "searches": "search",
        "retrainings": "retraining",
        "genotypes": "genotype",
    }
    return " ".join(single.get(word, word) for word in name.split())


def _genotypes(runs: Sequence[Run], plots: Plots) -> str:
    found = distinct_genotypes(runs)
    blocks = []
    for position, (genotype, users) in enumerate(found.items()):
        names = ", ".join(run.label for run in users)
        stem = "genotype" if position == 0 else f"genotype_{position + 1}"
        block = _genotype(genotype, stem, plots)
        if position == 0:
            blocks.append(f"<p>Of {escape(names)}.</p>{block}")
        else:
            blocks.append(_details(f"Genotype of {names}", block))
    return "".join(blocks)


def _genotype(genotype: Genotype, stem: str, plots: Plots) -> str:
    pictures = "".join(
        f"<h3>{escape(draw.cell_title(kind))}</h3>"
        + _figure(plots, f"{stem}_{kind}", picture)
        for kind, picture in draw.cell_pictures(genotype).items()
    )
    texts = "".join(
        _details(name, f"<pre>{escape(text)}</pre>")
        for name, text in (
            ("As text", pretty(genotype)),
            ("DOT (Graphviz)", draw.dot(genotype)),
            ("Mermaid", draw.mermaid(genotype)),
        )
    )
    return pictures + texts


def _results(runs: Sequence[Run]) -> str:
    blocks = []
    groups = by_dataset(runs)
    for dataset, roles in groups.items():
        if len(groups) > 1:
            blocks.append(f"<h3>{escape(dataset)}</h3>")
        blocks.append(tables.group_table(roles))
        text = difference_text(
            final_accuracy(roles.get("derived", [])),
            final_accuracy(roles.get("random", [])),
        )
        if text is not None:
            blocks.append(
                f"<p>Derived minus random genotypes: <b>{escape(text)}</b>.</p>"
            )
    return "".join(blocks) + "<h3>Each run</h3>" + tables.final_table(runs)


def _edge_weights(histories: Histories, plots: Plots) -> str:
    blocks: list[str] = []
    for label, kinds in histories.items():
        stem = f"_{label}" if blocks else ""
        block = "".join(_edge_history(history, stem, plots) for history in kinds)
        if block and blocks:
            blocks.append(_details(f"Edge weights of {label}", block))
        elif block:
            kept = "A frame marks what the derived genotype keeps."
            blocks.append(f"<p>Of {escape(label)}. {kept}</p>{block}")
    return "".join(blocks)


def _edge_history(history: edge_charts.EdgeHistory, stem: str, plots: Plots) -> str:
    kind, title = history.kind, escape(draw.cell_title(history.kind))
    last = history.epochs[-1]
    return (
        f"<h3>{title}, over epochs</h3>"
        + _figure(plots, f"edge_weights_{kind}{stem}", edge_charts.edge_panels(history))
        + f"<h3>{title}, after epoch {last}</h3>"
        + _figure(plots, f"heat_map_{kind}{stem}", edge_charts.heat_map(history))
    )


def _curves(runs: Sequence[Run], plots: Plots) -> str:
    blocks = []
    groups = by_dataset(runs)
    for dataset, roles in groups.items():
        suffix = f"_{dataset}" if len(groups) > 1 else ""
        pictures = charts.search_pictures(roles["search"]) if "search" in roles else {}
        retrained: dict[str, list[Run]] = {
            role: roles[role] for role in ("derived", "random") if role in roles
        }
        if retrained:
            pictures |= charts.retrain_pictures(retrained)
        figures = "".join(
            _figure(plots, name + suffix, svg) for name, svg in pictures.items()
        )
        heading = f"<h3>{escape(dataset)}</h3>" if len(groups) > 1 else ""
        blocks.append(f'{heading}<div class="grid">{figures}</div>')
    several = any(
        len(members) > 1 for roles in groups.values() for members in roles.values()
    )
    legend = (
        "Lines are means over runs, bands reach from the least to the greatest run."
    )
    return (f"<p>{legend}</p>" if several else "") + "".join(blocks)


def _timing(runs: Sequence[Run], plots: Plots) -> str:
    timed = [run for run in runs if run.timing]
    if not timed:
        return ""
    figure = _figure(plots, "time", charts.timing_picture(timed))
    return f'<div class="grid">{figure}</div>' + tables.timing_table(timed)


def _settings(runs: Sequence[Run]) -> str:
    """Returns the settings of searches and of retrainings, which share few values."""
    commands = {
        run.command: [r for r in runs if r.command == run.command] for run in runs
    }
    return "".join(
        (f"<h3>{command}</h3>" if len(commands) > 1 else "")
        + tables.settings_table(members, "config")
        for command, members in commands.items()
    )


def _versions(runs: Sequence[Run]) -> str:
    commands = "".join(tables.command_line(run) for run in runs)
    listed = _details("Commands", f"<pre>{commands}</pre>") if commands else ""
    return tables.settings_table(runs, "manifest") + listed


def _figure(plots: Plots, name: str, picture: str) -> str:
    """Returns a picture for the page and keeps it under a file name that is not yet taken."""
    stem = taken = _slug(name)
    count = 2
    while taken in plots:
        taken, count = f"{stem}_{count}", count + 1
    plots[taken] = picture
    return f"<figure>{picture}</figure>"


def _slug(name: str) -> str:
    """Returns `name` with nothing in it that could leave a folder or an attribute."""
    return re.sub("[^a-z0-9_-]+", "_", name.lower())[:80].strip("_") or "plot"


def _details(title: str, body: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{body}</details>"
