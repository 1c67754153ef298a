"""Colours of the report: one hue per operation family, dashes within a family.

The hues are the colour-blind-safe set of Okabe and Ito (2008), lightened for a dark page
where they would sink into it. Every colour is written twice: as a presentation attribute, which
every SVG reader understands, and as a class that a dark page overrides.
"""

from typing import NamedTuple

# family: (on a light page, on a dark page)
COLOURS = {
    "separable": ("#0072b2", "#4aa8e0"),
    "dilated": ("#009e73", "#2cc79b"),
    "convolution": ("#b0558a", "#dd8fbb"),
    "pooling": ("#c98500", "#f0b23c"),
    "skip": ("#d55e00", "#ff8a3d"),
    "none": ("#8a8f98", "#9aa0aa"),
    "noise": ("#3aa0d8", "#7cc7f0"),
    "other": ("#5b4bb5", "#a79bf0"),
    "ink": ("#1b1f24", "#e6e8eb"),
    "soft": ("#5c6570", "#a3abb5"),
    "line": ("#b4bac2", "#5d6570"),
    "grid": ("#e6e9ed", "#2b3038"),
    "node": ("#f2f4f7", "#252a31"),
    "paper": ("#ffffff", "#15181d"),
}

_OPERATIONS = {
    "sep_conv_3x3": ("separable", ""),
    "sep_conv_5x5": ("separable", "6 3"),
    "sep_conv_7x7": ("separable", "2 2"),
    "dil_conv_3x3": ("dilated", ""),
    "dil_conv_5x5": ("dilated", "6 3"),
    "max_pool_3x3": ("pooling", ""),
    "avg_pool_3x3": ("pooling", "6 3"),
    "nor_conv_3x3": ("convolution", ""),
    "nor_conv_1x1": ("convolution", "6 3"),
    "conv_7x1_1x7": ("convolution", "2 2"),
    "skip_connect": ("skip", ""),
    "none": ("none", "2 2"),
    "noise": ("noise", "2 2"),
}


class Pen(NamedTuple):
    """A colour name of `COLOURS` and an SVG dash pattern ("" for a solid line)."""

    colour: str
    dash: str = ""


def operation_pen(primitive: str) -> Pen:
    """Returns the pen of a primitive; an unknown one is drawn in the colour "other"."""
    return Pen(*_OPERATIONS.get(primitive, ("other", "")))


def _stylesheet() -> str:
    rules = "".join(
        f".dj-s-{name}{{stroke:{dark}}}.dj-f-{name}{{fill:{dark}}}"
        for name, (_, dark) in COLOURS.items()
    )
    # Only screens go dark: paper stays white.
    return f"@media screen and (prefers-color-scheme:dark){{{rules}}}"


STYLESHEET = _stylesheet()
