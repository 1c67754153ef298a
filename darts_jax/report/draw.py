"""Drawings of a genotype: SVG in layers, DOT for Graphviz, Mermaid for Markdown.

The layout is that of Sugiyama et al. (1981): nodes stand in the column after the last of
their sources; an edge that skips columns gets a lane of its own in each, so that no edge runs
through a node or a name; the order within a column follows the mean of the neighbours. A
primitive's name stands in the row where its edge enters its node, so names never overlap.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from darts_jax.genotype import CellGenotype, Genotype
from darts_jax.report import palette, shapes

ROW = 24.0  # height of an entering edge with its name
LANE = 10.0  # height kept free for an edge that passes a column
GAP = 16.0  # between two things of one column
NAME = 94.0  # width of an operation's name with its frame
NODE = 38.0
ARROW = 14.0  # between a name and its node
CURVE = 52.0  # between two columns
MARGIN = 18.0
_OUTPUT = -1


def node_name(cell: CellGenotype, index: int) -> str:
    """Returns a node's name: "c_{k-2}", "c_{k-1}" for inputs, then "0", "1", ..."""
    if index == _OUTPUT:
        return "c_{k}"
    if index < cell.num_inputs:
        return f"c_{{k-{cell.num_inputs - index}}}"
    return str(index - cell.num_inputs)


def cell_edges(cell: CellGenotype) -> list[tuple[int, int, str | None]]:
    """Returns the edges (source, target, primitive), those into the output (-1) last."""
    edges: list[tuple[int, int, str | None]] = [
        (source, cell.num_inputs + node, primitive)
        for node, incoming in enumerate(cell.nodes)
        for primitive, source in incoming
    ]
    return edges + [(source, _OUTPUT, None) for source in cell.concat]


def cell_title(kind: str) -> str:
    """Returns a heading for a cell kind: "normal cell", but "cell" where there is one kind."""
    return kind if kind == "cell" else f"{kind} cell"


def cell_pictures(genotype: Genotype) -> dict[str, str]:
    """Returns {cell kind: picture of that cell}, to stand inside a page."""
    pictures = {}
    for kind, cell in genotype.cells.items():
        layout = _Layout(cell)
        title = f"{cell_title(kind)} ({genotype.space})"
        body = _draw(layout)
        pictures[kind] = shapes.figure(body, layout.width, layout.height, title)
    return pictures


def svg(genotype: Genotype) -> str:
    """Returns the genotype as one SVG file: a row with a heading for each cell kind."""
    body, y, width = "", MARGIN, 0.0
    for kind, cell in genotype.cells.items():
        layout = _Layout(cell)
        body += shapes.text(MARGIN, y + 8, cell_title(kind), size=13, bold=True)
        body += (
            f'<g transform="translate(0 {shapes.fixed(y + 12)})">{_draw(layout)}</g>'
        )
        y += layout.height + 24
        width = max(width, layout.width)
    title = f"genotype ({genotype.space})"
    return shapes.standalone(shapes.figure(body, width, y, title))


def dot(genotype: Genotype) -> str:
    """Returns the genotype as one Graphviz digraph with a cluster a cell kind."""
    lines = [
        "digraph genotype {",
        "  rankdir=LR;",
        "  node [shape=box, style=rounded];",
    ]
    for number, (kind, cell) in enumerate(genotype.cells.items()):
        lines += [f"  subgraph cluster_{number} {{", f"    label={_dot_text(kind)};"]
        for index in [*range(cell.num_inputs + len(cell.nodes)), _OUTPUT]:
            name = _dot_text(node_name(cell, index))
            lines.append(f"    {_identifier(number, index)} [label={name}];")
        for source, target, primitive in cell_edges(cell):
            label = f" [label={_dot_text(primitive)}]" if primitive is not None else ""
            ends = f"{_identifier(number, source)} -> {_identifier(number, target)}"
            lines.append(f"    {ends}{label};")
        lines.append("  }")
    return "\n".join([*lines, "}", ""])


def mermaid(genotype: Genotype) -> str:
    """Returns the genotype as a Mermaid flowchart with a subgraph a cell kind."""
    lines = ["flowchart LR"]
    for number, (kind, cell) in enumerate(genotype.cells.items()):
        lines.append(f"  subgraph s{number}[{_mermaid_text(kind)}]")
        for index in [*range(cell.num_inputs + len(cell.nodes)), _OUTPUT]:
            name = _mermaid_text(node_name(cell, index))
            lines.append(f"    {_identifier(number, index)}[{name}]")
        for source, target, primitive in cell_edges(cell):
            label = f"|{_mermaid_text(primitive)}|" if primitive is not None else ""
            ends = (_identifier(number, source), _identifier(number, target))
            lines.append(f"    {ends[0]} -->{label} {ends[1]}")
        lines.append("  end")
    return "\n".join([*lines, ""])


def _identifier(number: int, index: int) -> str:
    return f"g{number}_" + ("out" if index == _OUTPUT else f"n{index}")


def _dot_text(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + " ".join(escaped.split()) + '"'


def _mermaid_text(value: str) -> str:
    escaped = value.replace("#", "#35;").replace('"', "#quot;")
    escaped = escaped.replace("<", "#lt;").replace(">", "#gt;")
    return '"' + " ".join(escaped.split()) + '"'


@dataclass
class _Item:
    """A node of the cell, or the lane of an edge through one column (index None)."""

    column: int
    index: int | None
    rows: int = 0
    y: float = 0.0
    near: list["_Item"] = field(default_factory=list)

    @property
    def height(self) -> float:
        return LANE if self.index is None else max(30.0, self.rows * ROW)


class _Layout:
    """Columns, items and edges of a cell with their coordinates."""

    def __init__(self, cell: CellGenotype):
        self.cell = cell
        edges = cell_edges(cell)
        depth = dict.fromkeys(range(cell.num_inputs), 0)
        for node, incoming in enumerate(cell.nodes):
            before = [depth[source] for _, source in incoming]
            depth[cell.num_inputs + node] = 1 + max(before, default=0)
        depth[_OUTPUT] = 1 + max(depth.values())
        self.nodes = {index: _Item(column, index) for index, column in depth.items()}
        for _, target, primitive in edges:
            self.nodes[target].rows += primitive is not None
        self.columns: list[list[_Item]] = [[] for _ in range(depth[_OUTPUT] + 1)]
        for item in self.nodes.values():
            self.columns[item.column].append(item)
        self.chains = [self._chain(*edge) for edge in edges]
        self._order()
        self._place()

    def _chain(
        self, source: int, target: int, primitive: str | None
    ) -> tuple[list[_Item], str | None]:
        """Returns the items an edge passes from source to target, with new lanes."""
        first, last = self.nodes[source], self.nodes[target]
        lanes = [_Item(column, None) for column in range(first.column + 1, last.column)]
        for lane in lanes:
            self.columns[lane.column].append(lane)
        items = [first, *lanes, last]
        for left, right in zip(items, items[1:], strict=False):
            left.near.append(right)
            right.near.append(left)
        return items, primitive

    def _order(self) -> None:
        """Orders each column by the mean position of the neighbours, to uncross edges."""
        self._stack()
        for sweep in range(12):
            columns = self.columns if sweep % 2 == 0 else self.columns[::-1]
            for column in columns:
                side = 1 if sweep % 2 == 0 else -1
                wish = {id(item): _mean_y(item, side) for item in column}
                column.sort(key=lambda item: wish[id(item)])
                self._stack()

    def _stack(self) -> None:
        for column in self.columns:
            total = sum(item.height + GAP for item in column)
            y = -total / 2
            for item in column:
                item.y = y + (item.height + GAP) / 2
                y += item.height + GAP

    def _place(self) -> None:
        """Moves items towards their neighbours without changing the order."""
        for sweep in range(24):
            for column in self.columns if sweep % 2 == 0 else self.columns[::-1]:
                wish = [_mean_y(item, 0) for item in column]
                down, up = wish[:], wish[:]
                for i in range(1, len(column)):
                    room = (column[i - 1].height + column[i].height) / 2 + GAP
                    down[i] = max(down[i], down[i - 1] + room)
                for i in reversed(range(len(column) - 1)):
                    room = (column[i].height + column[i + 1].height) / 2 + GAP
                    up[i] = min(up[i], up[i + 1] - room)
                # Both keep the distances, so their mean does.
                for item, low, high in zip(column, down, up, strict=True):
                    item.y = (low + high) / 2
        items = [item for column in self.columns for item in column]
        top = min(item.y - item.height / 2 for item in items) - MARGIN
        for item in items:
            item.y -= top
        self.height = max(item.y + item.height / 2 for item in items) + MARGIN
        self.width = self.right(len(self.columns) - 1) + MARGIN

    def left(self, column: int) -> float:
        """Returns where a column begins."""
        if column == 0:
            return MARGIN
        return MARGIN + NODE + CURVE + (column - 1) * (NAME + ARROW + NODE + CURVE)

    def right(self, column: int) -> float:
        """Returns where a column ends; the output's column holds no names."""
        plain = column in (0, len(self.columns) - 1)
        return self.left(column) + NODE + (0 if plain else NAME + ARROW)


def _mean_y(item: _Item, side: int) -> float:
    """Returns the mean height of the neighbours left (side 1), right (-1) or both (0)."""
    near = [other.y for other in item.near if (item.column - other.column) * side >= 0]
    return sum(near) / len(near) if near else item.y


def _draw(layout: _Layout) -> str:
    return "".join(_draw_edges(layout)) + "".join(_draw_nodes(layout))


def _draw_edges(layout: _Layout) -> Iterable[str]:
    entering: dict[int, list[tuple[list[_Item], str | None]]] = {}
    for chain, primitive in layout.chains:
        entering.setdefault(id(chain[-1]), []).append((chain, primitive))
    for chains in entering.values():
        # The rows of a node in the order its edges come from, so that they do not cross.
        chains.sort(key=lambda pair: pair[0][-2].y)
        target = chains[0][0][-1]
        for row, (chain, primitive) in enumerate(chains):
            if primitive is None:
                pen, width, spread = palette.Pen("line"), 1.4, 8.0
            else:
                pen, width, spread = palette.operation_pen(primitive), 1.9, ROW
            y = target.y + (row - (len(chains) - 1) / 2) * spread
            yield _draw_edge(layout, chain, y, pen, width)
            if primitive is not None:
                yield _draw_name(layout.left(target.column), y, primitive, pen)


def _draw_edge(
    layout: _Layout, chain: list[_Item], y: float, pen: palette.Pen, width: float
) -> str:
    commands = (
        f"M{shapes.fixed(layout.right(chain[0].column))} {shapes.fixed(chain[0].y)}"
    )
    for item, before in zip(chain[1:], chain, strict=False):
        here = y if item is chain[-1] else item.y
        start, end = layout.right(before.column), layout.left(item.column)
        middle = shapes.fixed((start + end) / 2)
        commands += f"C{middle} {shapes.fixed(before.y)} {middle} {shapes.fixed(here)} "
        commands += f"{shapes.fixed(end)} {shapes.fixed(here)}"
        if item is not chain[-1]:
            commands += f"H{shapes.fixed(layout.right(item.column))}"
    return shapes.path(commands, pen, width)


def _draw_name(x: float, y: float, primitive: str, pen: palette.Pen) -> str:
    shown = primitive if len(primitive) <= 13 else primitive[:12] + "\u2026"
    start, tip = x + NAME, x + NAME + ARROW - 1
    back = shapes.fixed(tip - 5)
    head = f"M{shapes.fixed(start)} {shapes.fixed(y)}H{shapes.fixed(tip)}"
    head += f"M{back} {shapes.fixed(y - 4)}L{shapes.fixed(tip)} {shapes.fixed(y)}"
    head += f"L{back} {shapes.fixed(y + 4)}"
    frame = shapes.rect(
        x, y - 9, NAME, 18, fill="paper", edge=pen.colour, radius=9, thickness=1.4
    )
    name = shapes.text(
        x + NAME / 2, y + 3.7, shown, size=10.5, anchor="middle", mono=True
    )
    return shapes.path(head, palette.Pen(pen.colour), 1.6) + frame + name


def _draw_nodes(layout: _Layout) -> Iterable[str]:
    for index, item in layout.nodes.items():
        x = layout.right(item.column) - NODE
        yield shapes.rect(x, item.y - item.height / 2, NODE, item.height, edge="soft")
        name = node_name(layout.cell, index)
        yield shapes.node_text(x + NODE / 2, item.y + 4, name, size=12.5)
