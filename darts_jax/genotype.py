"""Genotype: the discrete cells of a network, with their JSON and text forms (floor 0).

A cell is a small graph. States `0 .. num_inputs - 1` are its inputs, the intermediate
nodes follow, and every node is the sum of primitives applied to earlier states; the
states named in `concat` are the cell's output. DARTS (arXiv:1806.09055), section 2.1.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from darts_jax import notation
from darts_jax.errors import UserError, unknown
from darts_jax.notation import shown

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

# Far above any published cell: bounds for what a hostile file can ask for.
MAX_NODES = 64
MAX_CHARACTERS = 1_000_000

Nodes = tuple[tuple[tuple[str, int], ...], ...]


@dataclass(frozen=True)
class CellGenotype:
    """One cell; made from tuples or lists, and checked to be a valid graph when made.

    nodes: per intermediate node its incoming (primitive, source) pairs; node `i` is
        state `num_inputs + i`. The number of edges may differ from node to node, down
        to none for a node that nothing uses (FairDARTS); a source may repeat
        (NASNet-A).
    concat: the intermediate states that are concatenated to the cell's output.
    """

    nodes: Nodes
    concat: tuple[int, ...]
    num_inputs: int = 2

    def __post_init__(self) -> None:
        if not _is_int(self.num_inputs) or not 1 <= self.num_inputs <= MAX_NODES:
            raise UserError(f"num_inputs {shown(self.num_inputs)} is not 1 or more")
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
                    f"concat state {shown(state)} is not an intermediate node; "
                    f"choices: {self.num_inputs} to {last}"
                )
        if len(set(self.concat)) != len(self.concat):
            raise UserError(f"concat {shown(list(self.concat))} repeats a state")
        return tuple(self.concat)


@dataclass(frozen=True)
class Genotype:
    """The cells of a derived network; hashable, comparable, checked when made.

    space: the family of networks that the cells belong to, "darts" or "nas_bench_201":
        the `skeleton` of a search space, which subspaces such as darts_s1 share.
    cells: {cell kind: CellGenotype}, read-only.
    """

    space: str
    cells: Mapping[str, CellGenotype]

    def __post_init__(self) -> None:
        if self.space not in SKELETONS:
            raise unknown("genotype space", shown(self.space), SKELETONS)
        if not isinstance(self.cells, Mapping) or not self.cells:
            raise UserError("a genotype needs cells: {cell kind: CellGenotype}")
        for kind, cell in self.cells.items():
            if not isinstance(kind, str) or not kind.isidentifier():
                raise UserError(f"cell kind {shown(kind)} is not a name")
            if not isinstance(cell, CellGenotype):
                raise UserError(f"cell {kind!r} is {shown(cell)}, not a CellGenotype")
        object.__setattr__(self, "cells", MappingProxyType(dict(self.cells)))

    def __hash__(self) -> int:
        return hash((self.space, frozenset(self.cells.items())))

    def __reduce__(self) -> tuple[Any, ...]:
        # A mapping proxy does not pickle; sweeps send genotypes to other processes.
        return (Genotype, (self.space, dict(self.cells)))

    def to_json(self) -> dict[str, Any]:
        """Returns the genotype as lists, dicts, strings and integers."""
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
        """Returns the genotype of a `to_json` value; raises UserError for all else."""
        fields = _fields(value, "genotype", required=("space", "cells"))
        if not isinstance(fields["cells"], dict):
            raise UserError(
                f"genotype field 'cells' is {shown(fields['cells'])}, not an object"
            )
        cells = {}
        for kind, cell in fields["cells"].items():
            what = f"cell {shown(kind)!r}"
            cell = _fields(
                cell, what, required=("nodes", "concat"), optional=("num_inputs",)
            )
            try:
                cells[kind] = CellGenotype(**cell)
            except UserError as error:
                raise UserError(f"{what}: {error}") from None
        return cls(fields["space"], cells)

    def to_text(self) -> str:
        """Returns the notation of quark0/darts or NAS-Bench-201 (see notation.py).

        Raises UserError for cells that the notation cannot say; JSON can say all.
        """
        return notation.to_text(self.to_json())


def parse_text(text: str) -> Genotype:
    """Returns the genotype of the reference's or NAS-Bench-201's notation.

    The text is read as literals, never evaluated; anything else raises UserError.
    """
    return _from_notation(notation.parse(text))


def from_flat(fields: dict[str, Any]) -> Genotype:
    """Returns the genotype of the reference's named tuple, given as a dict of its fields.

    {normal: [[op, source], ...] two a node, normal_concat, reduce, reduce_concat}; raises
    UserError for anything else.
    """
    return _from_notation(notation.from_flat(fields))


def save(genotype: Genotype, path: str | os.PathLike[str]) -> None:
    """Writes the genotype as JSON; a reader sees the old file or the new one."""
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
    if os.path.isdir(path):
        raise UserError(
            f"{path} is a folder, not a genotype file; give {path}/genotype.json"
        )
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(MAX_CHARACTERS + 1)
        if len(text) > MAX_CHARACTERS:
            raise ValueError(f"more than {MAX_CHARACTERS} characters")
        value = json.loads(text)
    except FileNotFoundError:
        raise UserError(f"no genotype file {path}") from None
    except OSError as error:
        raise UserError(f"cannot read genotype file {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a JSON genotype: {shown(str(error))}") from None
    try:
        return Genotype.from_json(value)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def load_genotype(argument: str) -> Genotype:
    """Returns the genotype a user names: a zoo name, a JSON file, or the text form.

    Raises UserError with one line that says what the argument was taken for.
    """
    from darts_jax import zoo  # not at the top: the zoo is made of genotypes

    if not isinstance(argument, str) or not argument.strip():
        raise UserError(
            "empty genotype; give a JSON file, a zoo name or Genotype(...) text"
        )
    argument = os.path.expanduser(argument.strip())
    is_file = argument.endswith(".json") or os.path.isfile(argument)
    if argument.startswith("|") or ("(" in argument and not is_file):
        return parse_text(argument)
    if zoo.has(argument):
        return zoo.load(argument)
    if is_file or os.sep in argument or os.path.exists(argument):
        return load(argument)
    raise unknown("genotype (no such file either)", shown(argument), zoo.names())


def pretty(genotype: Genotype) -> str:
    """Returns the cells as lines for a terminal: a line a node, edges side by side."""
    lines = [f"space {genotype.space}"]
    for kind, cell in genotype.cells.items():
        lines.append(f"{kind} cell, output {' + '.join(map(str, cell.concat))}")
        for i, node in enumerate(cell.nodes):
            edges = "   ".join(f"{source} {op}" for op, source in node)
            lines.append(f"  {cell.num_inputs + i} <- {edges or '(nothing)'}")
    return "\n".join(lines)


def _from_notation(value: dict[str, Any]) -> Genotype:
    try:
        return Genotype.from_json(value)
    except UserError as error:
        raise UserError(f"genotype text: {error}") from None


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _checked_node(node: Any, target: int) -> tuple[tuple[str, int], ...]:
    """The edges into state `target` as tuples; raises UserError for a bad one."""
    if not isinstance(node, (list, tuple)):
        raise UserError(
            f"node {target} is {shown(node)}, not a list of (primitive, source)"
        )
    edges = []
    for edge in node:
        if not isinstance(edge, (list, tuple)) or len(edge) != 2:
            raise UserError(
                f"node {target}: {shown(edge)} is not a (primitive, source) pair"
            )
        op, source = edge
        if not isinstance(op, str) or op not in PRIMITIVES:
            raise unknown("primitive", shown(op), PRIMITIVES)
        if not _is_int(source) or not 0 <= source < target:
            raise UserError(
                f"node {target}: source {shown(source)} of {op} is not an earlier "
                f"state; choices: 0 to {target - 1}"
            )
        edges.append((op, source))
    return tuple(edges)


def _fields(
    value: Any, what: str, *, required: tuple[str, ...], optional: tuple[str, ...] = ()
) -> dict[str, Any]:
    """`value` if it is a dict with the required fields and no unknown one."""
    if not isinstance(value, dict):
        raise UserError(
            f"{what} is {shown(value)}, not an object with {', '.join(required)}"
        )
    for field in required:
        if field not in value:
            raise UserError(
                f"{what} has no field {field!r}; needed: {', '.join(required)}"
            )
    for field in value:
        if field not in required + optional:
            raise unknown(f"{what} field", shown(field), required + optional)
    return value
