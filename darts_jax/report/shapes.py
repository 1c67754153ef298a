"""A small SVG writer: escaped text, shapes in palette colours, and whole figures.

Every function returns a string of SVG. Text that enters a picture comes from files of a run and
is not trusted: it goes through `escape`, which leaves well-formed XML whatever was in it.
"""

import html
import re

from darts_jax.report import palette

MONO = "ui-monospace, Menlo, Consolas, DejaVu Sans Mono, monospace"
SANS = "system-ui, -apple-system, Segoe UI, Roboto, Helvetica, Arial, sans-serif"
# Characters that XML 1.0 forbids, lone surrogates (which UTF-8 cannot hold) among them.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def escape(value: object) -> str:
    """Returns `value` as text that is safe inside HTML and XML, in quotes as well."""
    return html.escape(_FORBIDDEN.sub("\ufffd", str(value)), quote=True)


def fixed(value: float) -> str:
    """Returns a coordinate with one decimal at most, so that files stay small."""
    return f"{value:.1f}".removesuffix(".0")


def stroke(colour: str, width: float = 1.0, dash: str = "") -> str:
    """Returns the attributes of a stroke in a palette colour (without a fill)."""
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'class="dj-s-{colour}" stroke="{palette.COLOURS[colour][0]}" '
        f'stroke-width="{width:g}"{dashes}'
    )


def text(
    x: float,
    y: float,
    content: object,
    *,
    size: float = 11,
    anchor: str = "start",
    colour: str = "ink",
    bold: bool = False,
    mono: bool = False,
    rotate: int = 0,
) -> str:
    """Returns one line of escaped text with its baseline at (x, y)."""
    return _text(
        x, y, escape(content), size, anchor, colour, bold, mono=mono, rotate=rotate
    )


def node_text(
    x: float,
    y: float,
    name: str,
    *,
    size: float = 12,
    anchor: str = "middle",
    bold: bool = False,
) -> str:
    """Returns one line of escaped text in which "_{k-2}" is set as a subscript."""
    # dy and not baseline-shift, which not every reader draws; the next span moves back.
    drop, small = fixed(size * 0.25), fixed(size * 0.72)
    parts = re.split(r"_\{([^{}]*)\}", name)
    content = escape(parts[0])
    for subscript, rest in zip(parts[1::2], parts[2::2], strict=True):
        content += f'<tspan font-size="{small}" dy="{drop}">'
        content += escape(subscript).replace("-", "\u2212") + "</tspan>"
        content += f'<tspan dy="-{drop}">{escape(rest)}</tspan>' if rest else ""
    return _text(x, y, content, size, anchor, "ink", bold)


def _text(
    x: float,
    y: float,
    markup: str,
    size: float,
    anchor: str,
    colour: str,
    bold: bool,
    *,
    mono: bool = False,
    rotate: int = 0,
) -> str:
    turn = f' transform="rotate({rotate} {fixed(x)} {fixed(y)})"' if rotate else ""
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{fixed(x)}" y="{fixed(y)}" font-size="{size:g}" '
        f'font-family="{MONO if mono else SANS}" text-anchor="{anchor}"{weight} '
        f'class="dj-f-{colour}" fill="{palette.COLOURS[colour][0]}"{turn}>{markup}</text>'
    )


def rect(
    x: float,
    y: float,
    width: float,
    height: float,
    *,
    fill: str = "node",
    edge: str | None = "line",
    radius: float = 6,
    thickness: float = 1.0,
) -> str:
    """Returns a rounded rectangle filled and, unless `edge` is None, outlined."""
    classes = f"dj-f-{fill}" + (f" dj-s-{edge}" if edge else "")
    outline = (
        f' stroke="{palette.COLOURS[edge][0]}" stroke-width="{thickness:g}"'
        if edge
        else ""
    )
    return (
        f'<rect x="{fixed(x)}" y="{fixed(y)}" width="{fixed(width)}" '
        f'height="{fixed(height)}" rx="{radius:g}" class="{classes}" '
        f'fill="{palette.COLOURS[fill][0]}"{outline}/>'
    )


def line(
    x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1.0
) -> str:
    """Returns a straight line."""
    ends = f'x1="{fixed(x1)}" y1="{fixed(y1)}" x2="{fixed(x2)}" y2="{fixed(y2)}"'
    return f"<line {ends} {stroke(colour, width)}/>"


def path(commands: str, pen: palette.Pen, width: float = 1.6) -> str:
    """Returns an unfilled path, `commands` being the value of its "d"."""
    return (
        f'<path d="{commands}" fill="none" stroke-linejoin="round" '
        f"{stroke(pen.colour, width, pen.dash)}/>"
    )


def disc(x: str, y: str, colour: str) -> str:
    """Returns a small filled disc at a point already written as text."""
    fill = palette.COLOURS[colour][0]
    return f'<circle cx="{x}" cy="{y}" r="2.6" class="dj-f-{colour}" fill="{fill}"/>'


def area(commands: str, colour: str) -> str:
    """Returns a pale filled path without an outline."""
    fill = palette.COLOURS[colour][0]
    return f'<path d="{commands}" class="dj-f-{colour}" fill="{fill}" fill-opacity="0.18"/>'


def figure(body: str, width: float, height: float, title: str) -> str:
    """Returns a picture to stand inside a page that carries `palette.STYLESHEET`."""
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" role="img" '
        f'width="{fixed(width)}" height="{fixed(height)}" '
        f'viewBox="0 0 {fixed(width)} {fixed(height)}">'
        f"<title>{escape(title)}</title>{body}</svg>"
    )


def standalone(picture: str) -> str:
    """Returns a `figure` as a file of its own, with its style and a background."""
    opening, closing, body = picture.partition("</title>")
    background = (
        '<rect width="100%" height="100%" class="dj-f-paper" '
        f'fill="{palette.COLOURS["paper"][0]}"/>'
    )
    style = f"<style>{palette.STYLESHEET}</style>"
    return f"{opening}{closing}{style}{background}{body}\n"
