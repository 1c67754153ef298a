"""Line charts: axes with round ticks, a legend, lines with gaps, and bands for a spread."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from darts_jax.report import shapes
from darts_jax.report.palette import Pen

WIDTH, HEIGHT = 520.0, 270.0
_LEFT, _RIGHT, _BOTTOM = 52.0, 14.0, 38.0
_LEGEND_ROW = 16.0
Scale = Callable[[float], float]  # a value to its pixel


@dataclass(frozen=True)
class Line:
    """A named line over epochs; y is None in a gap; low and high, if any, bound a band."""

    label: str
    pen: Pen
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()


def nice_ticks(
    low: float, high: float, count: int = 5, least: float = 0.0
) -> list[float]:
    """Returns about `count` multiples of 1, 2 or 5 times a power of ten within [low, high].

    Steps are not smaller than `least` (1 for epochs).
    """
    span = max(high - low, 1e-12 * max(abs(low), abs(high), 1e-300))
    raw = max(span / max(count, 1), least)
    power = 10.0 ** math.floor(math.log10(raw))
    factor = next((f for f in (1, 2, 5) if f * power >= raw * 0.999), 10)
    step = factor * power
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [tick * step for tick in range(first, last + 1)]


def tick_text(value: float) -> str:
    """Returns a tick's label without trailing zeros."""
    return f"{value:.4g}" if value else "0"


def chart(
    title: str,
    lines: Sequence[Line],
    *,
    y_label: str,
    percent: bool = False,
    references: Sequence[tuple[str, float]] = (),
    floor: float | None = None,
    whole: bool = False,
) -> str:
    """Returns the picture of lines over epochs.

    percent: values in [0, 1] are labelled in %; references: (label, y) of dashed levels;
    floor: a value the y axis starts at or below; whole: ticks at whole numbers only.
    """
    lines = [line for line in lines if any(y is not None for y in line.y)]
    body = shapes.text(_LEFT, 18, title, size=13, bold=True)
    if not lines:
        body += shapes.text(WIDTH / 2, HEIGHT / 2, "no values yet", anchor="middle")
        return shapes.figure(body, WIDTH, HEIGHT, title)
    legend, rows = _legend(lines)
    top = 30 + rows * _LEGEND_ROW
    frame = _Frame.around(lines, [y for _, y in references], floor, top)
    body += legend + _axes(frame, y_label, percent, whole)
    for label, y in references:
        height = frame.y(y)
        ends = f"M{_LEFT} {shapes.fixed(height)}H{WIDTH - _RIGHT}"
        body += shapes.path(ends, Pen("soft", "2 3"), 1.1)
        body += shapes.text(
            WIDTH - _RIGHT - 3, height - 4, label, size=10, anchor="end", colour="soft"
        )
    body += "".join(band(line, frame.x, frame.y) for line in lines)
    body += "".join(curve(line, frame.x, frame.y) for line in lines)
    return shapes.figure(body, WIDTH, HEIGHT, title)


@dataclass(frozen=True)
class _Frame:
    """The data's window and the pixels it is drawn in."""

    low_x: float
    high_x: float
    low_y: float
    high_y: float
    top: float

    @classmethod
    def around(
        cls, lines: Sequence[Line], levels: list[float], floor: float | None, top: float
    ) -> "_Frame":
        xs = [x for line in lines for x in line.x]
        values = [*levels] if floor is None else [*levels, floor]
        for line in lines:
            values += [
                y
                for part in (line.y, line.low, line.high)
                for y in part
                if y is not None
            ]
        low, high = min(values), max(values)
        pad = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
        bottom = low if floor is not None and low >= floor else low - pad
        left, right = min(xs), max(xs)
        return cls(left, right if right > left else left + 1, bottom, high + pad, top)

    def x(self, value: float) -> float:
        """Returns the pixel column of an epoch."""
        share = (value - self.low_x) / (self.high_x - self.low_x)
        return _LEFT + share * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        """Returns the pixel row of a value."""
        share = (value - self.low_y) / (self.high_y - self.low_y)
        return HEIGHT - _BOTTOM - share * (HEIGHT - _BOTTOM - self.top)


def curve(line: Line, to_x: Scale, to_y: Scale, width: float = 1.8) -> str:
    """Returns a line in pixels; a value between two gaps becomes a dot."""
    commands, dots = "", ""
    for points in _stretches(line.x, line.y):
        pixels = [(shapes.fixed(to_x(x)), shapes.fixed(to_y(y))) for x, y in points]
        if len(pixels) == 1:
            dots += shapes.disc(*pixels[0], line.pen.colour)
        else:
            commands += "M" + "L".join(f"{x} {y}" for x, y in pixels)
    return (shapes.path(commands, line.pen, width) if commands else "") + dots


def band(line: Line, to_x: Scale, to_y: Scale) -> str:
    """Returns the area between a line's low and high, nothing where it has none."""
    commands = ""
    lows = _stretches(line.x, line.low)
    highs = _stretches(line.x, line.high)
    for low, high in zip(lows, highs, strict=True):
        around = [*high, *reversed(low)]
        pixels = (f"{shapes.fixed(to_x(x))} {shapes.fixed(to_y(y))}" for x, y in around)
        commands += "M" + "L".join(pixels) + "Z"
    return shapes.area(commands, line.pen.colour) if commands else ""


def _stretches(
    xs: Sequence[float], ys: Sequence[float | None]
) -> list[list[tuple[float, float]]]:
    """Returns the points between the gaps."""
    stretches: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(xs, ys, strict=False):
        if y is not None:
            stretches[-1].append((x, y))
        elif stretches[-1]:
            stretches.append([])
    return [stretch for stretch in stretches if stretch]


def _legend(lines: Sequence[Line]) -> tuple[str, int]:
    """Returns the legend below the title and its number of rows."""
    body, x, row = "", _LEFT, 0
    for line in lines:
        needed = 30 + 6.1 * len(line.label) + 14
        if x > _LEFT and x + needed > WIDTH - _RIGHT:
            x, row = _LEFT, row + 1
        y = 34 + row * _LEGEND_ROW
        sample = f"M{shapes.fixed(x)} {shapes.fixed(y - 4)}h22"
        body += shapes.path(sample, line.pen, 2)
        body += shapes.text(x + 28, y, line.label, colour="soft")
        x += needed
    return body, row + 1


def _axes(frame: _Frame, y_label: str, percent: bool, whole: bool) -> str:
    body = ""
    scale = 100.0 if percent else 1.0
    low, high = frame.low_y * scale, frame.high_y * scale
    for tick in nice_ticks(low, high, least=1.0 if whole else 0.0):
        y = frame.y(tick / scale)
        body += shapes.line(_LEFT, y, WIDTH - _RIGHT, y, "grid")
        body += shapes.text(
            _LEFT - 7, y + 3.5, tick_text(tick), size=10.5, anchor="end", colour="soft"
        )
    base = HEIGHT - _BOTTOM
    for tick in nice_ticks(frame.low_x, frame.high_x, 8, least=1.0):
        x = frame.x(tick)
        body += shapes.line(x, base, x, base + 4, "line")
        body += shapes.text(
            x, base + 16, tick_text(tick), size=10.5, anchor="middle", colour="soft"
        )
    body += shapes.line(_LEFT, base, WIDTH - _RIGHT, base, "line")
    middle = (frame.top + base) / 2
    label = f"{y_label} (%)" if percent else y_label
    body += shapes.text(13, middle, label, anchor="middle", colour="soft", rotate=-90)
    centre = (_LEFT + WIDTH - _RIGHT) / 2
    return body + shapes.text(
        centre, HEIGHT - 6, "epoch", anchor="middle", colour="soft"
    )
