"""Pictures of the edge weights [E, O]: a panel an edge over epochs, and the final state.

Edge weights sum to 1 over the primitives of an edge under softmax, but not under every
relaxation; so the axes fit the values, and all panels of a cell share them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from darts_jax.genotype import CellGenotype
from darts_jax.report import line_chart, shapes
from darts_jax.report.draw import cell_title, node_name
from darts_jax.report.palette import Pen, operation_pen

PANEL_WIDTH, PANEL_HEIGHT = 186.0, 112.0
_LEGEND_ITEM = 116.0
_CELL_WIDTH, _CELL_HEIGHT, _EDGE_COLUMN = 84.0, 22.0, 96.0
# ColorBrewer "Blues": one hue from light to dark, safe for every kind of colour vision.
_BLUES = (
    (247, 251, 255),
    (198, 219, 239),
    (107, 174, 214),
    (33, 113, 181),
    (8, 48, 107),
)

Matrix = list[list[float | None]]  # [E, O], None where a value is not finite


@dataclass(frozen=True)
class EdgeHistory:
    """The edge weights of one cell kind over a search.

    edges: (source, target) of each of the E edges; primitives: names of the O operations;
    matrices: one [E, O] per epoch of `epochs`; cell: the derived cell, None if unknown.
    """

    kind: str
    edges: tuple[tuple[int, int], ...]
    primitives: tuple[str, ...]
    epochs: list[int]
    matrices: list[Matrix]
    cell: CellGenotype | None

    def edge_name(self, edge: int) -> str:
        """Returns the edge as text, nodes named as in the drawing."""
        return "{} \u2192 {}".format(*(self._name(node) for node in self.edges[edge]))

    def chosen(self, edge: int) -> list[str]:
        """Returns the primitives that the derived cell keeps on an edge."""
        source, target = self.edges[edge]
        node = target - self.num_inputs
        if self.cell is None or not 0 <= node < len(self.cell.nodes):
            return []
        return [name for name, origin in self.cell.nodes[node] if origin == source]

    @property
    def num_inputs(self) -> int:
        """Returns the number of the cell's inputs."""
        return min((target for _, target in self.edges), default=0)

    def _name(self, node: int) -> str:
        cell = self.cell or CellGenotype(
            ((("none", 0),),), (self.num_inputs,), self.num_inputs
        )
        return node_name(cell, node)


def edge_panels(history: EdgeHistory) -> str:
    """Returns small multiples: a row a target node, a column a source, a line a primitive."""
    targets = sorted({target for _, target in history.edges})
    sources = sorted({source for source, _ in history.edges})
    width = max(len(sources) * PANEL_WIDTH, 4 * _LEGEND_ITEM) + 24
    legend, top = _legend(history.primitives, width)
    values = [
        value
        for matrix in history.matrices
        for row in matrix
        for value in row
        if value is not None
    ]
    low, high = _span(values)
    body = legend
    for edge, (source, target) in enumerate(history.edges):
        x = 12 + sources.index(source) * PANEL_WIDTH
        y = top + targets.index(target) * PANEL_HEIGHT
        body += _panel(history, edge, x, y, (low, high))
    title = f"edge weights of the {cell_title(history.kind)} over epochs"
    return shapes.figure(body, width, top + len(targets) * PANEL_HEIGHT + 8, title)


def _span(values: Sequence[float]) -> tuple[float, float]:
    """Returns the least and the greatest of the values and 0; 0 and 1 where all are 0."""
    low, high = min(0.0, *values, 0.0), max(0.0, *values, 0.0)
    return (low, high) if low < high else (0.0, 1.0)


def _legend(primitives: Sequence[str], width: float) -> tuple[str, float]:
    """Returns the names of the lines and the height they take."""
    columns = max(1, int((width - 24) // _LEGEND_ITEM))
    body = ""
    for i, name in enumerate(primitives):
        x = 12 + (i % columns) * _LEGEND_ITEM
        y = 18 + (i // columns) * 17
        body += shapes.path(
            f"M{shapes.fixed(x)} {shapes.fixed(y - 4)}h24", operation_pen(name), 2.2
        )
        body += shapes.text(x + 29, y, name, size=10.5, mono=True)
    return body, 26.0 + 17 * ((len(primitives) - 1) // columns + 1)


def _panel(
    history: EdgeHistory, edge: int, x: float, y: float, span: tuple[float, float]
) -> str:
    """Returns one panel; an edge that the derived cell keeps has a frame and its choice."""
    left, right, top, base = x + 26, x + PANEL_WIDTH - 10, y + 20, y + PANEL_HEIGHT - 20
    low, high = span
    first, last = history.epochs[0], history.epochs[-1]

    def to_x(epoch: float) -> float:
        return left + (epoch - first) / max(last - first, 1) * (right - left)

    def to_y(value: float) -> float:
        return base - (value - low) / (high - low) * (base - top)

    chosen = history.chosen(edge)
    body = shapes.node_text(
        left,
        y + 13,
        history.edge_name(edge),
        size=10.5,
        anchor="start",
        bold=bool(chosen),
    )
    if chosen:
        colour = operation_pen(chosen[0]).colour
        body += shapes.text(
            right,
            y + 13,
            ", ".join(chosen),
            size=10,
            anchor="end",
            colour=colour,
            mono=True,
        )
    body += shapes.rect(
        left,
        top,
        right - left,
        base - top,
        fill="paper",
        edge=operation_pen(chosen[0]).colour if chosen else "grid",
        radius=2,
        thickness=1.3 if chosen else 1.0,
    )
    for tick in line_chart.nice_ticks(low, high, 3):
        body += shapes.text(
            left - 4,
            to_y(tick) + 3,
            line_chart.tick_text(tick),
            size=8.5,
            anchor="end",
            colour="soft",
        )
    for epoch, anchor in {first: "start", last: "end"}.items():
        place = left if anchor == "start" else right
        body += shapes.text(
            place, base + 11, epoch, size=8.5, anchor=anchor, colour="soft"
        )
    for column, name in enumerate(history.primitives):
        ys = [matrix[edge][column] for matrix in history.matrices]
        line = line_chart.Line(name, operation_pen(name), history.epochs, ys)
        body += line_chart.curve(line, to_x, to_y, 1.4)
    return body


def heat_map(history: EdgeHistory) -> str:
    """Returns the last [E, O] as shaded numbers; what the derived cell keeps is framed."""
    matrix = history.matrices[-1]
    finite = [value for row in matrix for value in row if value is not None]
    low, high = _span(finite)
    width = _EDGE_COLUMN + len(history.primitives) * _CELL_WIDTH + 12
    body, frames = "", ""
    for column, name in enumerate(history.primitives):
        x = _EDGE_COLUMN + (column + 0.5) * _CELL_WIDTH
        shown = name if len(name) <= 13 else name[:12] + "\u2026"
        body += shapes.text(x, 18, shown, size=10, anchor="middle", mono=True)
    for edge, row in enumerate(matrix):
        y = 26 + edge * _CELL_HEIGHT
        chosen = history.chosen(edge)
        body += shapes.node_text(
            _EDGE_COLUMN - 8,
            y + 15,
            history.edge_name(edge),
            size=10.5,
            anchor="end",
            bold=bool(chosen),
        )
        for column, value in enumerate(row):
            x = _EDGE_COLUMN + column * _CELL_WIDTH
            body += _shade(
                x, y, value, None if value is None else (value - low) / (high - low)
            )
            if history.primitives[column] in chosen:
                # Drawn last, or the neighbours would cover half of the frame.
                frames += _frame(x, y)
    height = 26 + len(matrix) * _CELL_HEIGHT + 10
    title = f"final edge weights of the {cell_title(history.kind)}"
    return shapes.figure(body + frames, width, height, title)


def _shade(x: float, y: float, value: float | None, share: float | None) -> str:
    """Returns one square of the heat map; its colours are the same on a dark page."""
    if value is None or share is None:
        return shapes.text(
            x + _CELL_WIDTH / 2, y + 15, "\u2013", anchor="middle", colour="soft"
        )
    place = min(max(share, 0.0), 1.0) * (len(_BLUES) - 1)
    index = min(int(place), len(_BLUES) - 2)
    mixed = [
        round(a + (b - a) * (place - index))
        for a, b in zip(_BLUES[index], _BLUES[index + 1], strict=True)
    ]
    fill = "#{:02x}{:02x}{:02x}".format(*mixed)
    ink = "#ffffff" if share > 0.55 else "#1b1f24"
    return (
        f'<rect x="{shapes.fixed(x)}" y="{shapes.fixed(y)}" width="{_CELL_WIDTH - 1:g}" '
        f'height="{_CELL_HEIGHT - 1:g}" fill="{fill}"/>'
        f'<text x="{shapes.fixed(x + _CELL_WIDTH / 2)}" y="{shapes.fixed(y + 15)}" '
        f'font-size="10.5" font-family="{shapes.SANS}" text-anchor="middle" '
        f'fill="{ink}">{value:.3f}</text>'
    )


def _frame(x: float, y: float) -> str:
    commands = f"M{shapes.fixed(x)} {shapes.fixed(y)}h{_CELL_WIDTH - 1:g}"
    commands += f"v{_CELL_HEIGHT - 1:g}h-{_CELL_WIDTH - 1:g}z"
    return shapes.path(commands, Pen("skip"), 2)
