"""The two text notations of a genotype, to and from its JSON form (floor 0).

quark0/darts prints `Genotype(normal=[('sep_conv_3x3', 1), ...], normal_concat=[2, 3, 4,
5], reduce=[...], reduce_concat=[...])`, two edges a node; NAS-Bench-201
(arXiv:2001.00326) prints `|op~0|+|op~0|op~1|+...`, one edge from every earlier state.
Text comes from command lines and strangers: it is read as literals, never evaluated,
and its size is bounded.
"""

import ast
import re
from typing import Any

from darts_jax.errors import UserError, unknown

KINDS: tuple[str, ...] = ("normal", "reduce")  # the reference's two cells, in order
MAX_CHARACTERS = 100_000
MAX_STATE = 1000  # bounds the list that `range(...)` in a text may stand for
FORM = "Genotype(normal=[('sep_conv_3x3', 1), ...], normal_concat=[...], reduce=...)"


def shown(value: object) -> str:
    """Returns `value` as one short line, for messages about broken input."""
    text = value if isinstance(value, str) else repr(value)
    text = " ".join(text.split())
    return text if len(text) <= 60 else text[:57] + "..."


def to_text(genotype: dict[str, Any]) -> str:
    """Returns the notation of a JSON-form genotype; raises UserError if it has none."""
    cells = genotype["cells"]
    if genotype["space"] == "nas_bench_201":
        return _print_nas_bench(cells)
    if set(cells) != set(KINDS):
        raise UserError(
            f"the text form has the cells normal and reduce, not {', '.join(cells)}; "
            "use JSON"
        )
    return f"Genotype({', '.join(_print_cell(kind, cells[kind]) for kind in KINDS)})"


def parse(text: str) -> dict[str, Any]:
    """Returns the JSON form of a text; raises UserError for all but the notations."""
    if not isinstance(text, str):
        raise UserError(f"genotype text is {shown(text)}, not a string")
    if len(text) > MAX_CHARACTERS:
        raise UserError(
            f"genotype text has {len(text)} characters; at most {MAX_CHARACTERS}"
        )
    text = text.strip()
    return (
        _parse_nas_bench(text) if text.startswith("|") else from_flat(_keywords(text))
    )


def from_flat(fields: dict[str, Any]) -> dict[str, Any]:
    """Returns the JSON form of the reference's four fields, flat lists of edges.

    Raises UserError for missing or unknown fields and for lists of odd length.
    """
    wanted = [name for kind in KINDS for name in (kind, f"{kind}_concat")]
    for name in fields:
        if name not in wanted:
            raise unknown("Genotype(...) field", shown(name), wanted)
    for name in wanted:
        if name not in fields:
            raise UserError(
                f"genotype text has no field {name!r}; needed: {', '.join(wanted)}"
            )
    cells = {}
    for kind in KINDS:
        edges = fields[kind]
        if not isinstance(edges, list) or not edges or len(edges) % 2:
            raise UserError(
                f"genotype text: {kind} must be a list with two edges a node, not "
                f"{shown(edges)}"
            )
        nodes = [edges[i : i + 2] for i in range(0, len(edges), 2)]
        cells[kind] = {"nodes": nodes, "concat": fields[f"{kind}_concat"]}
    return {"space": "darts", "cells": cells}


def _print_cell(kind: str, cell: dict[str, Any]) -> str:
    counts = [len(node) for node in cell["nodes"]]
    if cell["num_inputs"] != 2 or set(counts) != {2}:
        raise UserError(
            "the text form needs two inputs and two edges a node; the "
            f"{kind} cell has {cell['num_inputs']} and {counts}; use JSON"
        )
    edges = [tuple(edge) for node in cell["nodes"] for edge in node]
    return f"{kind}={edges!r}, {kind}_concat={cell['concat']!r}"


def _keywords(text: str) -> dict[str, Any]:
    """The keyword arguments of a `Genotype(...)` call, read as literals."""
    try:
        call = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise UserError(f"genotype text {shown(text)!r} is not {FORM}") from None
    match call:
        case ast.Call(func=ast.Name(id="Genotype"), args=[], keywords=keywords):
            fields = {str(field.arg): _literal(field.value) for field in keywords}
            if len(fields) < len(keywords):
                raise UserError("genotype text names a field twice")
            return fields
    raise UserError(f"genotype text {shown(text)!r} is not {FORM}")


def _literal(node: ast.expr) -> Any:
    """A string, an integer, a list of them, or a published text's `range(2, 6)`."""
    match node:
        case ast.Constant(value=str() as value):
            return value
        case ast.Constant(value=int() as value) if value <= MAX_STATE:
            return value
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_literal(item) for item in items]
        case ast.Call(
            func=ast.Name(id="range"),
            args=[
                ast.Constant(value=int() as start),
                ast.Constant(value=int() as stop),
            ],
            keywords=[],
        ) if 0 <= start < stop <= MAX_STATE:
            return list(range(start, stop))
    raise UserError(
        f"genotype text may hold strings, integers up to {MAX_STATE} and lists only, not "
        f"{type(node).__name__}"
    )


def _print_nas_bench(cells: dict[str, Any]) -> str:
    if set(cells) != {"cell"}:
        raise UserError(f"the text form has one cell 'cell', not {', '.join(cells)}")
    cell, parts = cells["cell"], []
    if cell["num_inputs"] != 1 or list(cell["concat"]) != [len(cell["nodes"])]:
        raise UserError(
            "the text form needs one input and the last node as output, not "
            f"{cell['num_inputs']} and {cell['concat']}; use JSON"
        )
    for i, node in enumerate(cell["nodes"]):
        edges = sorted(node, key=lambda edge: edge[1])
        if [source for _, source in edges] != list(range(i + 1)):
            raise UserError(
                f"the text form needs one edge from each state 0 to {i}; use JSON"
            )
        parts.append("|" + "".join(f"{op}~{source}|" for op, source in edges))
    return "+".join(parts)


def _parse_nas_bench(text: str) -> dict[str, Any]:
    nodes = []
    for i, part in enumerate(text.split("+")):
        names = part.strip("|").split("|")
        edges = [re.fullmatch(r"(\w+)~([0-9]{1,3})", name) for name in names]
        found = [[edge[1], int(edge[2])] for edge in edges if edge]
        if part != f"|{'|'.join(names)}|" or len(found) != len(names):
            raise UserError(
                f"genotype text {shown(part)!r} is not |op~source|op~source|"
            )
        if [source for _, source in found] != list(range(i + 1)):
            raise UserError(
                f"genotype text {shown(part)!r} must name the sources 0 to {i} in order"
            )
        nodes.append(found)
    cell = {"nodes": nodes, "concat": [len(nodes)], "num_inputs": 1}
    return {"space": "nas_bench_201", "cells": {"cell": cell}}
