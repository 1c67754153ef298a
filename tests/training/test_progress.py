"""Progress: a bar on a terminal, a line an epoch elsewhere, nothing where it is off."""

import io
import sys

import pytest

from darts_jax.training.progress import show_progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def show(
    stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, enabled: bool = True
) -> str:
    monkeypatch.setattr(sys, "stderr", stream)
    with show_progress("search", 8, enabled=enabled) as progress:
        progress(0, "compiling")
        progress(3, "epoch 1/2: loss 2.000")
        progress(4, "epoch 1/2: loss 1.000", end_of_epoch=True)
    return stream.getvalue()


def test_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    text = show(io.StringIO(), monkeypatch)
    assert text == "search: step 4/8, epoch 1/2: loss 1.000\n"


def test_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    text = show(Terminal(), monkeypatch)
    assert "search" in text and "50%" in text and "loss 1.000" in text


def test_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert show(Terminal(), monkeypatch, enabled=False) == ""
