"""Genotype: the discrete cells of a network, their JSON and the reference's text form (floor 0).

A cell is a small graph. States `0 .. num_inputs - 1` are its inputs, the intermediate nodes
follow, and every node is the sum of primitives applied to earlier states; the states named in
`concat` are the cell's output. DARTS (Liu et al. 2019, arXiv:1806.09055), section 2.1.

Two notations are read besides JSON, both parsed and never evaluated: the `Genotype(normal=[...],
...)` of github.com/quark0/darts, and the `|op~0|+|op~0|op~1|+...` of NAS-Bench-201.
"""

import ast
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from darts_jax.errors import UserError, unknown

PRIMITIVES: tuple[str, ...] = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "sep_conv_7x7",
    "dil_conv_3x3",
    "dil_conv_5x5",
    "conv_7x1_1x7",
    "nor_conv_1x1",
    "nor_conv_3x3",
    "noise",
)
SKELETONS: tuple[str, ...] = ("darts", "nas_bench_201")
TEXT_KINDS: tuple[str, ...] = (
    "normal",
    "reduce",
)  # the reference's two cells, in order

MAX_NODES = (
    64  # far above any published cell; a bound for what a hostile file can ask for
)
MAX_CHARACTERS = 100_000

Nodes = tuple[tuple[tuple[str, int], ...], ...]


@dataclass(frozen=True)
class CellGenotype:
    """One cell: per intermediate node its incoming (primitive, source) pairs, then the output.

    nodes: node `i` is state `num_inputs + i`; its sources are states before it. The number of
        edges may differ from node to node, down to none for a node that nothing uses
        (FairDARTS), and a source may repeat (NASNet-A).
    concat: the intermediate states that are concatenated to the cell's output.
    """

    nodes: Nodes
    concat: tuple[int, ...]
    num_inputs: int = 2

    def __post_init__(self) -> None:
        """Normalises lists to tuples; raises UserError if the cell is not a valid graph."""
        if not _is_int(self.num_inputs) or not 1 <= self.num_inputs <= MAX_NODES:
            raise UserError(
                f"num_inputs must be an integer >= 1, not {_show(self.num_inputs)}"
            )
        if (
            not isinstance(self.nodes, (list, tuple))
            or not 1 <= len(self.nodes) <= MAX_NODES
        ):
            raise UserError(f"a cell needs a list of 1 to {MAX_NODES} nodes")
        nodes = tuple(
            _checked_node(node, self.num_inputs + i)
            for i, node in enumerate(self.nodes)
        )
        object.__setattr__(self, "nodes", nodes)
        object.__setattr__(self, "concat", self._checked_concat())
        used = set(self.concat) | {source for node in nodes for _, source in node}
        for target, node in enumerate(nodes, start=self.num_inputs):
            if not node and target in used:
                raise UserError(
                    f"node {target} has no incoming edge but its output is used"
                )

    def _checked_concat(self) -> tuple[int, ...]:
        if not isinstance(self.concat, (list, tuple)) or not self.concat:
            raise UserError("a cell needs a non-empty list of concat states")
        last = self.num_inputs + len(self.nodes) - 1
        for state in self.concat:
            if not _is_int(state) or not self.num_inputs <= state <= last:
                raise UserError(
                    f"concat state {_show(state)} is not an intermediate node; "
                    f"choices: {self.num_inputs} to {last}"
                )
        if len(set(self.concat)) != len(self.concat):
            raise UserError(f"concat {_show(list(self.concat))} repeats a state")
        return tuple(self.concat)


@dataclass(frozen=True)
class Genotype:
    """The cells of a derived network; hashable, comparable, checked when made.

    space: the family of networks the cells belong to, "darts" or "nas_bench_201" (a search
        space's `skeleton`); subspaces such as darts_s1 share their family's name.
    cells: {cell kind: CellGenotype}, read-only.
    """

    space: str
    cells: Mapping[str, CellGenotype]

    def __post_init__(self) -> None:
        """Freezes `cells`; raises UserError for an unknown family or a missing cell."""
        if self.space not in SKELETONS:
            raise unknown("genotype space", _short(self.space), SKELETONS)
        if not isinstance(self.cells, Mapping) or not self.cells:
            raise UserError(
                "a genotype needs at least one cell: {cell kind: CellGenotype}"
            )
        for kind, cell in self.cells.items():
            if not isinstance(kind, str) or not kind.isidentifier():
                raise UserError(
                    f"cell kind {_show(kind)} is not a name such as 'normal'"
                )
            if not isinstance(cell, CellGenotype):
                raise UserError(f"cell {kind!r} is {_show(cell)}, not a CellGenotype")
        object.__setattr__(self, "cells", MappingProxyType(dict(self.cells)))

    def __hash__(self) -> int:
        return hash((self.space, frozenset(self.cells.items())))

    def __reduce__(self) -> tuple[Any, ...]:
        # A mapping proxy does not pickle; sweeps send genotypes to other processes.
        return (Genotype, (self.space, dict(self.cells)))

    def to_json(self) -> dict[str, Any]:
        """Returns the genotype as lists, dicts, strings and integers, ready for json.dumps."""
        return {
            "space": self.space,
            "cells": {
                kind: {
                    "nodes": [[[op, src] for op, src in node] for node in cell.nodes],
                    "concat": list(cell.concat),
                    "num_inputs": cell.num_inputs,
                }
                for kind, cell in self.cells.items()
            },
        }

    @classmethod
    def from_json(cls, value: Any) -> "Genotype":
        """Returns the genotype of a `to_json` value; raises UserError for anything else."""
        fields = _fields(value, "genotype", required=("space", "cells"))
        if not isinstance(fields["cells"], dict):
            raise UserError(
                f"genotype field 'cells' is {_show(fields['cells'])}, not an object"
            )
        cells = {}
        for kind, cell in fields["cells"].items():
            what = f"cell {_short(kind)!r}"
            cell = _fields(
                cell, what, required=("nodes", "concat"), optional=("num_inputs",)
            )
            try:
                cells[kind] = CellGenotype(**cell)
            except UserError as error:
                raise UserError(f"{what}: {error}") from None
        return cls(fields["space"], cells)

    def to_text(self) -> str:
        """Returns the reference's text form; raises UserError where it cannot say the cells.

        The form of quark0/darts is a flat list with two edges a node, and that of NAS-Bench-201
        names every predecessor once; JSON has no such limits.
        """
        return (
            _nas_bench_text(self)
            if self.space == "nas_bench_201"
            else _darts_text(self)
        )


def parse_text(text: str) -> Genotype:
    """Returns the genotype written in the reference's or NAS-Bench-201's notation.

    The text is read as literals and never evaluated. Raises UserError for everything else.
    """
    if not isinstance(text, str):
        raise UserError(f"genotype text is {_show(text)}, not a string")
    if len(text) > MAX_CHARACTERS:
        raise UserError(
            f"genotype text has {len(text)} characters, limit {MAX_CHARACTERS}"
        )
    text = text.strip()
    return _parse_nas_bench(text) if text.startswith("|") else _parse_darts(text)


def save(genotype: Genotype, path: str | os.PathLike[str]) -> None:
    """Writes the genotype as JSON; a reader sees the old file or the new one, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process id keeps two writers from sharing one temporary file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(
            json.dumps(genotype.to_json(), indent=1) + "\n", encoding="utf-8"
        )
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: str | os.PathLike[str]) -> Genotype:
    """Returns the genotype of a JSON file; raises UserError that names the file."""
    path = Path(path)
    if path.is_dir():
        raise UserError(
            f"{path} is a folder, not a genotype file; give {path}/genotype.json"
        )
    try:
        if path.stat().st_size > MAX_CHARACTERS:
            raise UserError(
                f"{path}: more than {MAX_CHARACTERS} bytes, not a genotype file"
            )
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no genotype file {path}") from None
    except OSError as error:
        raise UserError(f"cannot read genotype file {path}: {error.strerror}") from None
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not a JSON file: {reason}") from None
    try:
        return Genotype.from_json(value)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def load_genotype(argument: str) -> Genotype:
    """Returns the genotype a user names: a zoo name, a JSON file, or the text form.

    Raises UserError with one line that says what the argument was taken for.
    """
    from darts_jax import zoo  # the zoo is made of genotypes, so it imports this module

    if not isinstance(argument, str) or not argument.strip():
        raise UserError(
            "empty genotype; give a JSON file, a zoo name or Genotype(...) text"
        )
    argument = argument.strip()
    if "(" in argument or argument.startswith("|"):
        return parse_text(argument)
    if zoo.has(argument):
        return zoo.load(argument)
    if len(argument) > 4096 or "\0" in argument:
        raise UserError(
            f"genotype {_short(argument)!r} is neither a file nor a zoo name"
        )
    if argument.endswith(".json") or os.sep in argument or Path(argument).exists():
        return load(argument)
    raise unknown("genotype (no such file either)", argument, zoo.names())


def pretty(genotype: Genotype) -> str:
    """Returns the cells as lines for a terminal: one line a node, its edges side by side."""
    lines = [f"space {genotype.space}"]
    for kind, cell in genotype.cells.items():
        lines.append(f"{kind} cell, output {' + '.join(map(str, cell.concat))}")
        for i, node in enumerate(cell.nodes):
            edges = "   ".join(f"{source} {op}" for op, source in node)
            lines.append(f"  {cell.num_inputs + i} <- {edges or '(nothing)'}")
    return "\n".join(lines)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _short(value: object) -> str:
    """`value` as one short line, for error messages about hostile or broken input."""
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else text[:57] + "..."


def _show(value: object) -> str:
    return repr(_short(value)) if isinstance(value, str) else _short(repr(value))


def _checked_node(node: Any, target: int) -> tuple[tuple[str, int], ...]:
    """The edges into state `target` as tuples; raises UserError for a bad one."""
    if not isinstance(node, (list, tuple)):
        raise UserError(
            f"node {target} is {_show(node)}, not a list of (primitive, source)"
        )
    edges = []
    for edge in node:
        if not isinstance(edge, (list, tuple)) or len(edge) != 2:
            raise UserError(
                f"node {target}: {_show(edge)} is not a (primitive, source) pair"
            )
        op, source = edge
        if not isinstance(op, str) or op not in PRIMITIVES:
            raise unknown("primitive", _short(op), PRIMITIVES)
        if not _is_int(source) or not 0 <= source < target:
            raise UserError(
                f"node {target}: source {_show(source)} of {op} is not an earlier state; "
                f"choices: 0 to {target - 1}"
            )
        edges.append((op, source))
    return tuple(edges)


def _fields(
    value: Any, what: str, *, required: tuple[str, ...], optional: tuple[str, ...] = ()
) -> dict[str, Any]:
    """`value` if it is a dict with the required fields and no unknown one."""
    if not isinstance(value, dict):
        raise UserError(
            f"{what} is {_show(value)}, not an object with {', '.join(required)}"
        )
    for field in required:
        if field not in value:
            raise UserError(
                f"{what} has no field {field!r}; needed: {', '.join(required)}"
            )
    for field in value:
        if field not in required + optional:
            raise unknown(f"{what} field", _short(field), required + optional)
    return value


def _darts_text(genotype: Genotype) -> str:
    if set(genotype.cells) != set(TEXT_KINDS):
        kinds = ", ".join(genotype.cells)
        raise UserError(
            f"the text form holds the cells normal and reduce, not {kinds}; use JSON"
        )
    parts = []
    for kind in TEXT_KINDS:
        cell = genotype.cells[kind]
        if cell.num_inputs != 2 or any(len(node) != 2 for node in cell.nodes):
            raise UserError(
                f"the text form needs two inputs and two edges a node; the {kind} cell has "
                f"{cell.num_inputs} and {[len(node) for node in cell.nodes]}; use JSON"
            )
        edges = [edge for node in cell.nodes for edge in node]
        parts.append(f"{kind}={edges!r}, {kind}_concat={list(cell.concat)!r}")
    return f"Genotype({', '.join(parts)})"


def _parse_darts(text: str) -> Genotype:
    fields = _keywords(text)
    wanted = [name for kind in TEXT_KINDS for name in (kind, f"{kind}_concat")]
    for name in fields:
        if name not in wanted:
            raise unknown("Genotype(...) field", _short(name), wanted)
    for name in wanted:
        if name not in fields:
            raise UserError(
                f"genotype text has no field {name!r}; needed: {', '.join(wanted)}"
            )
    cells = {}
    for kind in TEXT_KINDS:
        edges = fields[kind]
        if not isinstance(edges, list) or not edges or len(edges) % 2:
            raise UserError(
                f"genotype text: {kind} must be a list with two edges a node"
            )
        nodes = tuple((edges[i], edges[i + 1]) for i in range(0, len(edges), 2))
        try:
            cells[kind] = CellGenotype(nodes, fields[f"{kind}_concat"])
        except UserError as error:
            raise UserError(f"genotype text: {kind} cell: {error}") from None
    return Genotype("darts", cells)


def _keywords(text: str) -> dict[str, Any]:
    """The keyword arguments of a `Genotype(...)` call, read as literals."""
    form = (
        "Genotype(normal=[('sep_conv_3x3', 1), ...], normal_concat=[...], reduce=...)"
    )
    try:
        call = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise UserError(f"genotype text {_short(text)!r} is not {form}") from None
    if (
        not isinstance(call, ast.Call)
        or not isinstance(call.func, ast.Name)
        or call.func.id != "Genotype"
        or call.args
    ):
        raise UserError(f"genotype text {_short(text)!r} is not {form}")
    return {str(keyword.arg): _literal(keyword.value) for keyword in call.keywords}


def _literal(node: ast.expr) -> Any:
    """A string, an integer, a list of literals, or the `range(2, 6)` of published texts."""
    match node:
        case ast.Constant(value=str() | int() as value):
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
        ) if 0 <= start < stop <= 2 * MAX_NODES:
            return list(range(start, stop))
    kind = type(node).__name__
    raise UserError(
        f"genotype text may hold strings, integers and lists only, not {kind}"
    )


def _nas_bench_text(genotype: Genotype) -> str:
    if set(genotype.cells) != {"cell"}:
        raise UserError(
            f"the text form holds one cell 'cell', not {', '.join(genotype.cells)}"
        )
    cell = genotype.cells["cell"]
    parts = []
    for i, node in enumerate(cell.nodes):
        edges = sorted(node, key=lambda edge: edge[1])
        if [source for _, source in edges] != list(range(i + 1)):
            raise UserError(
                "the text form needs one edge from every earlier state; use JSON"
            )
        parts.append("|" + "".join(f"{op}~{source}|" for op, source in edges))
    return "+".join(parts)


def _parse_nas_bench(text: str) -> Genotype:
    nodes = []
    for i, part in enumerate(text.split("+")):
        names = part.strip("|").split("|")
        edges = [re.fullmatch(r"(\w+)~(\d{1,3})", name) for name in names]
        if part != "|" + "|".join(names) + "|" or None in edges:
            raise UserError(
                f"genotype text {_short(part)!r} is not |op~source|op~source|"
            )
        nodes.append(tuple((edge[1], int(edge[2])) for edge in edges if edge))
        if [source for _, source in nodes[-1]] != list(range(i + 1)):
            raise UserError(
                f"genotype text {_short(part)!r} must name sources 0 to {i} in order"
            )
    return Genotype(
        "nas_bench_201", {"cell": CellGenotype(tuple(nodes), (len(nodes),), 1)}
    )
