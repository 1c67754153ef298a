"""scripts/benchmark_accelerator.py, which measures many choices side by side."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from darts_jax.benchmark.worker import kernels_of

ROOT = Path(__file__).resolve().parents[2]
QUICK = {"DARTS_JAX_KERNELS": "0", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
BOTH = "--choices=plain_retrain,merged_bfloat16_retrain"


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "benchmark_accelerator.py")]
    return subprocess.run(
        [*command, *words], env=os.environ | QUICK, capture_output=True, text=True
    )


def test_choices_are_measured_in_turns(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    asked = ("--profile=plain_retrain", "--repeat=plain_retrain")
    words = ("--size=tiny", "--rounds=3", *asked, BOTH)
    found = run(f"--json={path}", *words)
    assert found.returncode == 0, found.stderr
    record = json.loads(path.read_text())
    choices = record["choices"]
    assert set(choices) == {"plain_retrain", "merged_bfloat16_retrain"}
    for name, figures in choices.items():
        assert name in found.stdout
        assert len(figures["steps_s"]) == 3
        assert min(figures["steps_s"]) <= figures["median_s"] <= max(figures["steps_s"])
        assert figures["images_per_second"] == pytest.approx(4 / figures["median_s"])
        floor = figures["floor_bytes"] / record["bandwidth_bytes_per_second"]
        assert figures["share_of_floor"] == pytest.approx(floor / figures["median_s"])
        # It trains: the same batch again and again.
        assert figures["train_losses"][-1] < figures["train_losses"][0]
    assert choices["plain_retrain"]["profile"] == {"kernels": {}, "step_s": 0.0}  # CPU
    first = choices["plain_retrain"]["train_losses"]
    assert choices["plain_retrain"]["again"] == {"train_losses": first}
    assert "plain_retrain: the same losses again" in found.stdout
    assert not {"profile", "again"} & set(choices["merged_bfloat16_retrain"])
    assert f"--json={path}" in record["command"]


def test_what_is_not_ready_in_time_is_named(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    found = run(f"--json={path}", "--size=tiny", "--ready=1", BOTH)
    assert found.returncode == 1
    for figures in json.loads(path.read_text())["choices"].values():
        assert figures == {"failed": "not ready in 1 s"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--json=r.json", "--choices=plian"), "did you mean 'plain'?"),
        (
            ("--json=r.json", "--rounds=0"),
            "--rounds=0: expected a whole number above 0",
        ),
        ((), "name the record: --json=FILE"),
    ],
)
def test_a_mistake_is_one_line(words: tuple[str, ...], message: str) -> None:
    found = run(*words)
    assert found.returncode == 2
    assert message in found.stderr and found.stderr.count("\n") == 1


def test_the_kernels_of_a_profile() -> None:
    def plane(name: str, **lines: list[tuple[str, float, float]]) -> Any:
        return SimpleNamespace(
            name=name,
            lines=[
                SimpleNamespace(
                    name=line.replace("_", " "),
                    events=[
                        SimpleNamespace(name=n, start_ns=start, duration_ns=duration)
                        for n, start, duration in events
                    ],
                )
                for line, events in lines.items()
            ],
        )

    events = [("add", 1e9, 5e8), ("dot", 2e9, 1e9), ("add", 4e9, 25e7)]
    profile = SimpleNamespace(
        planes=[
            plane("/device:GPU:0", Stream_7=events, XLA_Ops=[("add", 0.0, 9e9)]),
            plane("/device:GPU:1", Stream_7=events),
            plane("/host:CPU", Stream_1=events),
        ]
    )
    found = kernels_of(profile)
    assert found == {"kernels": {"add": [2, 0.75], "dot": [1, 1.0]}, "step_s": 3.25}
