"""An optional baseline that dies stands in the record with its reason; the rest goes on."""

import sys
from typing import Any

import pytest

from darts_jax.benchmark import measure
from darts_jax.benchmark.pipe import WorkerError
from darts_jax.benchmark.sizes import Variant

# Serves as either side; "at=N" lets it die in its Nth step, "at=0" before the first, "at=-1"
# after the last.
PROGRAM = """
import sys
from darts_jax.benchmark import pipe

last = next((int(word[3:]) for word in sys.argv if word.startswith("at=")), None)
steps = 0

def prepare(**_):
    assert last != 0, "cannot be prepared"
    return {f"{name}_s": 1.0 for name in ("kernels", "init", "trace", "compile")}

def step():
    global steps
    steps += 1
    assert steps != last, f"step {steps} fails"
    return {"seconds": 2.0, "train_loss": 0.0}

def peak():
    assert last != -1, "cannot be weighed"
    return {"peak_resident_bytes": 1, "peak_device_bytes": None}

pipe.serve({
    "prepare": prepare,
    "step": step,
    "reset_peak": lambda: {"reset": True},
    "peak": peak,
    "bandwidth": lambda copy_bytes: {"bytes_per_second": 1.0},
})
"""
COMMAND = (sys.executable, "-c", PROGRAM)


def _measured(
    monkeypatch: pytest.MonkeyPatch, *baselines: measure.Baseline
) -> tuple[dict[str, Any], list[str]]:
    said: list[str] = []
    monkeypatch.setattr(measure, "OUR_COMMAND", COMMAND)
    run = measure.Run("tiny", Variant(), "cpu", baselines, 3, said.append)
    return measure.measure(run, "weights_step"), said


@pytest.mark.parametrize(
    ("at", "words"),
    [(0, "cannot be prepared"), (3, "step 3 fails"), (-1, "cannot be weighed")],
)
def test_an_optional_baseline_may_die(
    monkeypatch: pytest.MonkeyPatch, at: int, words: str
) -> None:
    entry, said = _measured(
        monkeypatch,
        measure.Baseline("steady", COMMAND),
        measure.Baseline("weak", (*COMMAND, f"at={at}"), optional=True),
    )
    assert entry["weak"] == {"failed": f"ended with status 1: AssertionError: {words}"}
    assert f"weights_step: weak failed: {entry['weak']['failed']}" in said
    assert entry["jax"]["count"] == entry["steady"]["count"] == 3


def test_any_other_death_ends_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WorkerError, match="step 3 fails"):
        _measured(monkeypatch, measure.Baseline("steady", (*COMMAND, "at=3")))
