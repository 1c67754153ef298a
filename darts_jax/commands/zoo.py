"""`darts-jax zoo`: the published genotypes, as a table or one in full."""

from typing import Any

from darts_jax import zoo
from darts_jax.commands import flags
from darts_jax.errors import UserError
from darts_jax.genotype import Genotype, pretty

HEADER = ("name", "year", "test error", "parameters", "paper")


def main(argv: list[str]) -> int:
    """Prints the table of the zoo, or the entry that `argv` names."""
    words = flags.parse(argv, {}, positional="NAME").positional
    if len(words) > 1:
        raise UserError(f"zoo shows one entry at a time, got {', '.join(words)}")
    print("\n".join(_entry(zoo.entry(words[0])) if words else _table()))
    return 0


def _table() -> list[str]:
    """One line an entry: reported CIFAR-10 error in %, computed CIFAR-10 parameters."""
    rows = [HEADER]
    for name in zoo.names():
        entry = zoo.entry(name)
        paper = entry["paper"]
        rows.append(
            (
                name,
                str(paper["year"]),
                _error(entry["reported"]),
                _count(_computed(entry, "cifar10"), "parameters"),
                paper["title"],
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    lines = [
        "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    return [
        *(line.rstrip() for line in lines),
        "",
        "Test errors on CIFAR-10 in %, as their papers report them; parameters counted",
        "here, 20 cells, 36 channels. darts-jax zoo NAME shows one in full.",
    ]


def _entry(entry: dict[str, Any]) -> list[str]:
    paper, source = entry["paper"], entry["source"]
    lines = [
        f"{entry['name']}: {entry['note']}" if entry.get("note") else entry["name"],
        f"{paper['authors']} ({paper['year']}). {paper['title']}.",
    ]
    if paper.get("arxiv"):
        lines.append(f"https://arxiv.org/abs/{paper['arxiv']}")
    if source and source.get("repository"):
        lines.append(
            f"genotype from github.com/{source['repository']} {source['path']}"
        )
    lines += ["", pretty(Genotype.from_json(entry["genotype"])), ""]
    reported = {k: v for k, v in (entry["reported"] or {}).items() if v is not None}
    lines += [f"reported  {name}: {value}" for name, value in reported.items()]
    for setting in ("cifar10", "cifar100", "imagenet"):
        computed = _computed(entry, setting)
        if computed:
            lines.append(
                f"computed  {setting}: {_count(computed, 'parameters')} parameters, "
                f"{_count(computed, 'multiply_adds')} multiply-adds "
                f"({computed['num_cells']} cells, {computed['channels']} channels)"
            )
    return lines


def _computed(entry: dict[str, Any], setting: str) -> dict[str, Any]:
    return (entry.get("computed") or {}).get(setting) or {}


def _count(computed: dict[str, Any], name: str) -> str:
    return f"{computed[name]:,}" if computed.get(name) else "-"


def _error(reported: dict[str, Any] | None) -> str:
    error = (reported or {}).get("cifar10_test_error")
    spread = (reported or {}).get("cifar10_test_error_std")
    if error is None:
        return "-"
    return f"{error:.2f}" if spread is None else f"{error:.2f} +- {spread:.2f}"
