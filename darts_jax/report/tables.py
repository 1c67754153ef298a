"""The tables of the page: finals of groups and runs, time, settings."""

import shlex
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from darts_jax.report.runs import Run, flatten, lookup, number
from darts_jax.report.shapes import escape
from darts_jax.report.summary import ROLES, accuracy_text, final_accuracy

_NONE = "\u2013"
_OWN = (
    "argv",
    "command",
    "seed",
    "started",
)  # of a manifest, shown elsewhere or per run


def facts(runs: Sequence[Run]) -> str:
    """Returns one sentence on the data, the space and the method, as far as all runs agree."""
    # A retraining's config carries the fields of a search along without using them.
    searches = [run for run in runs if run.command == "search"]
    parts = []
    if not searches:
        spaces = {run.genotype.space for run in runs if run.genotype is not None}
        parts += [f"genotypes of space {space}" for space in sorted(spaces)]
    for name, key, owners in (
        ("space", "space", searches),
        ("preset", "preset", runs),
        ("method", "one_shot", searches),
        ("hypergradient", "hypergradient", searches),
    ):
        values = {str(run.config[key]) for run in owners if run.config.get(key)}
        if len(values) == 1:
            parts.append(f"{name} {values.pop()}")
    limits = {number(lookup(run.config, "dataset", "limit")) or 0 for run in runs}
    if limits - {0}:
        shown = ", ".join(f"{limit:g}" for limit in sorted(limits - {0}))
        parts.append(f"only {shown} training images")
    text = ", ".join(parts)
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def group_table(roles: Mapping[str, Sequence[Run]]) -> str:
    """Returns mean and sample standard deviation of each group, with its n and range."""
    rows = []
    for role, runs in roles.items():
        final = final_accuracy(runs)
        split = "valid" if role == "search" else "test"
        rows.append(
            [
                ROLES[role],
                f"{split} accuracy",
                accuracy_text(final) or _NONE,
                f"{percent(final.minimum)} to {percent(final.maximum)}"
                if final
                else _NONE,
            ]
        )
    heads = [
        "group",
        "measure",
        "mean \u00b1 sample standard deviation",
        "least to greatest",
    ]
    return table(heads, rows, numeric=(2, 3))


def final_table(runs: Sequence[Run]) -> str:
    """Returns the finals of every run, a row each."""
    rows = []
    for run in runs:
        result = run.result or {}
        top5 = number(result.get("test_top5_accuracy"))
        state = (
            "finished"
            if run.result is not None
            else f"{len(run.metrics)} epochs so far"
        )
        rows.append(
            [
                run.label,
                "search" if run.role == "search" else f"retrain, {run.role}",
                run.config.get("seed", _NONE),
                _genotype_name(run),
                state,
                percent(run.score),
                percent(top5),
                decimal(number(result.get("test_loss")), 4),
                count(number(result.get("parameters"))),
                count(number(result.get("multiply_adds"))),
            ]
        )
    heads = ["run", "kind", "seed", "genotype", "state", "valid/test %", "top-5 %"]
    heads += ["test loss", "parameters", "multiply-adds"]
    return table(heads, rows, numeric=range(5, 10))


def timing_table(runs: Sequence[Run]) -> str:
    """Returns total time, median time of an epoch and median throughput of each run."""
    rows = []
    for run in runs:
        seconds = _finite(run, "seconds")
        total = number((run.result or {}).get("seconds"))
        rows.append(
            [
                run.label,
                duration(sum(seconds) if total is None else total),
                len(run.timing),
                decimal(statistics.median(seconds) if seconds else None, 1),
                decimal(_median(_finite(run, "images_per_second")), 1),
            ]
        )
    heads = ["run", "total", "epochs", "median s an epoch", "median images/s"]
    return table(heads, rows, numeric=range(1, 5))


def settings_table(runs: Sequence[Run], source: Literal["config", "manifest"]) -> str:
    """Returns the settings that all runs share, and below it, per run, those that differ."""
    settings = {run.label: flatten(getattr(run, source)) for run in runs}
    if source == "manifest":
        settings = {
            label: {key: value for key, value in rows.items() if key not in _OWN}
            for label, rows in settings.items()
        }
    settings = {label: rows for label, rows in settings.items() if rows}
    names = sorted({name for rows in settings.values() for name in rows})
    values = {name: [rows.get(name) for rows in settings.values()] for name in names}
    common = [
        [name, found[0]] for name, found in values.items() if len(set(found)) == 1
    ]
    differing = [name for name, found in values.items() if len(set(found)) > 1]
    blocks = ""
    if common:
        blocks += table(
            ["setting", "value" if len(settings) < 2 else "value, all runs"], common
        )
    if differing:
        heads = ["run", *differing]
        rows = [
            [label, *(found.get(name, _NONE) for name in differing)]
            for label, found in settings.items()
        ]
        blocks += "<h3>Settings that differ</h3>" + table(heads, rows)
    return blocks


def command_line(run: Run) -> str:
    """Returns the command of a run as an escaped line, empty where it is not known."""
    argv = run.manifest.get("argv")
    if not isinstance(argv, list) or not argv:
        return ""
    started = run.manifest.get("started")
    when = f"  (started {started})" if started else ""
    return escape(f"# {run.label}{when}\n{shlex.join(map(str, argv))}\n")


def table(
    heads: Sequence[str], rows: Iterable[Sequence[object]], numeric: Iterable[int] = ()
) -> str:
    """Returns an HTML table of escaped cells, the columns `numeric` set to the right."""
    right = set(numeric)

    def cells(tag: str, values: Sequence[object]) -> str:
        return "".join(
            f'<{tag} class="n">{escape(value)}</{tag}>'
            if column in right
            else f"<{tag}>{escape(value)}</{tag}>"
            for column, value in enumerate(values)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    head = f"<thead><tr>{cells('th', heads)}</tr></thead>"
    return f'<div class="scroll"><table>{head}<tbody>{body}</tbody></table></div>'


def percent(value: float | None) -> str:
    """Returns a share in percent with two decimals, a dash for None."""
    return _NONE if value is None else f"{100 * value:.2f}"


def decimal(value: float | None, digits: int) -> str:
    """Returns a number with fixed decimals, a dash for None."""
    return _NONE if value is None else f"{value:.{digits}f}"


def count(value: float | None) -> str:
    """Returns a count with thousands (k), millions (M) or billions (G), a dash for None."""
    if value is None:
        return _NONE
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"{value / size:.2f}{unit}"
    return f"{value:g}"


def duration(seconds: float) -> str:
    """Returns seconds as "1 h 02 min", "3 min 05 s" or "4.2 s"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _genotype_name(run: Run) -> str:
    name = (
        (run.result or {}).get("genotype_name") or run.config.get("genotype") or _NONE
    )
    if run.role == "random":
        return f"random, seed {run.config.get('genotype_seed', _NONE)}"
    return str(name)


def _finite(run: Run, key: str) -> list[float]:
    values = (number(row.get(key)) for row in run.timing)
    return [value for value in values if value is not None]


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None
