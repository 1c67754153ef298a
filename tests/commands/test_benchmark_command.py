"""`darts-jax benchmark` end to end at the tiny size, and its mistakes."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from darts_jax.__main__ import main
from darts_jax.benchmark.pipe import WorkerError
from darts_jax.commands import benchmark

TINY = ["benchmark", "--size=tiny", "--steps=3"]
# A baseline that pretends: every step takes 1000 s, the process 1 byte.
BASELINE = """
import sys
from darts_jax.benchmark import pipe

def accept(backend):
    return {"versions": {"torch": "pretended"}}

def prepare(size, workload, backend):
    assert "--compile" not in sys.argv, "this baseline cannot be compiled"
    return {"init_s": 0.0, "backend": backend}

pipe.serve({
    "accept": accept,
    "prepare": prepare,
    "step": lambda: {"seconds": 1000.0, "train_loss": 0.0},
    "reset_peak": lambda: {"reset": True},
    "peak": lambda: {"peak_resident_bytes": 1, "peak_device_bytes": None},
})
"""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers compile in a fraction of the time."""
    monkeypatch.setenv("DARTS_JAX_KERNELS", "0")
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout whose PyTorch baseline pretends."""
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "torch_supernet.py").write_text(BASELINE)
    monkeypatch.setattr(benchmark, "ROOT", tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace())
    return tmp_path


def _positive(figures: dict[str, Any], *names: str) -> bool:
    return all(figures[name] > 0 for name in names)


def test_a_search_step_is_measured(
    quick: None, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--workloads=search_step_unrolled", "--baseline=torch", "--torch-compile"]
    words.append("--implementation=plain")
    assert main([*TINY, *words]) == 0
    path = checkout / "benchmarks" / "tiny_plain_cpu.json"
    record = json.loads(path.read_text())
    assert str(path) in capsys.readouterr().out
    entry = record["workloads"]["search_step_unrolled"]
    ours = entry["jax"]
    assert ours["count"] == len(ours["steps_s"]) == 3
    assert ours["min_s"] <= ours["median_s"] <= max(ours["steps_s"])
    assert ours["images_per_second"] == pytest.approx(8 / ours["median_s"])
    assert _positive(ours, "trace_s", "compile_s", "init_s", "peak_resident_bytes")
    assert _positive(ours, "temporary_bytes", "flops", "bytes_accessed")
    assert _positive(ours, "bandwidth_bytes_per_second", "floor_s")
    assert ours["share_of_floor"] == pytest.approx(ours["floor_s"] / ours["median_s"])
    assert ours["cold"]["compile_s"] > ours["compile_s"]  # the cache was used
    # It trains: the same batch again and again.
    assert ours["train_losses"][-1] < ours["train_losses"][0]
    assert entry["torch"]["workload"] == "search_step_finite_difference"
    assert entry["torch"]["backend"] == "cpu"
    assert "cannot be compiled" in entry["torch_compile"]["failed"]
    ratio = record["ratios"]["search_step_exact_second_order"]
    assert ratio == pytest.approx(1000 / ours["median_s"])
    assert record["ratios"]["search_step_first_order"] is None
    assert record["versions"]["torch"] == "pretended"
    assert record["implementation"] == "plain"
    assert record["cpu"] and record["cores"] >= 1


def test_without_a_baseline_into_a_named_file(
    quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out.json"
    words = ["--implementation=merged", "--precision=bfloat16", "--seeds=2"]
    assert main([*TINY, "--workloads=retrain_step", f"--json={path}", *words]) == 0
    record = json.loads(path.read_text())
    assert (record["implementation"], record["precision"]) == ("merged", "bfloat16")
    assert record["seeds"] == 2
    assert list(tmp_path.iterdir()) == [path]
    assert record["ratios"]["retrain_step"] is None
    assert 0 < record["compile_warm_s"] < record["compile_cold_s"]
    assert record["workloads"]["retrain_step"]["jax"]["images_per_step"] == 8
    assert "retrain_step" in capsys.readouterr().out


def test_compile_only_says_the_seconds(
    quick: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    assert main([*TINY, "--workloads=weights_step", "--compile-only"]) == 0
    out = capsys.readouterr().out
    assert "weights_step: kernels " in out
    assert " s, compile " in out
    assert f"compiled programs: {tmp_path}" in out
    assert any(tmp_path.iterdir())


def test_a_run_that_fails_keeps_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_up = {"kernels_s": 0.0, "trace_s": 1.0, "compile_s": 1.0}
    figures = start_up | {"cold": start_up, "median_s": 1.0}

    def fail_later(_: Any, workload: str) -> dict[str, Any]:
        if workload == "retrain_step":
            raise WorkerError("worker", "ended with signal 9")
        return {"jax": figures}

    monkeypatch.setattr(benchmark.measure, "survey", lambda _: {"backend": "cpu"})
    monkeypatch.setattr(benchmark.measure, "measure", fail_later)
    path = tmp_path / "out.json"
    words = ["--workloads=weights_step,retrain_step", f"--json={path}"]
    with pytest.raises(WorkerError):
        main([*TINY, *words])
    assert list(json.loads(path.read_text())["workloads"]) == ["weights_step"]


def test_a_signal_ends_the_workers(
    quick: None, tmp_path: Path, repository: Path
) -> None:
    words = [*TINY, "--workloads=weights_step", f"--json={tmp_path / 'out.json'}"]
    run = subprocess.Popen(
        [sys.executable, "-m", "darts_jax", *words],
        stderr=subprocess.PIPE,
        text=True,
        cwd=repository,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    assert run.stderr is not None
    for line in run.stderr:  # until the first worker has compiled
        if "with empty caches" in line:
            break
    assert list(tmp_path.iterdir())
    run.send_signal(signal.SIGTERM)
    run.stderr.close()
    assert run.wait() == 128 + signal.SIGTERM
    assert not list(tmp_path.iterdir())


def test_an_earlier_record_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "tiny_cpu.json"
    assert benchmark._unused(path) == path
    path.write_text("{}")
    assert benchmark._unused(path) == tmp_path / "tiny_cpu_2.json"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--size=papr"], "unknown size 'papr'; did you mean 'paper'?"),
        (["--workloads=x"], "unknown workload of this size 'x'"),
        (
            ["--size=nb201", "--workloads=retrain_step"],
            "unknown workload of this size 'retrain_step'",
        ),
        (["--steps=0"], "--steps=0: expected a whole number, at least 1"),
        (["--steps=many"], "--steps=many: expected a whole number"),
        (["--baseline=torhc"], "unknown baseline 'torhc'; did you mean 'torch'?"),
        (["--implementation=fusd"], "did you mean 'fused'?"),
        (["--precision=bf16"], "unknown precision 'bf16'"),
        (["--seeds=0"], "--seeds=0: expected a whole number, at least 1"),
        (["--seeds=2", "--baseline=pmap"], "--baseline takes neither --precision nor"),
        (["--torch-compile"], "--torch-compile needs --baseline=torch"),
        (["--json=no/such/folder/x.json"], "no folder 'no/such/folder'"),
        (["--json=."], "--json=. is a folder"),
        (["--compile-only", "--json=x.json"], "--compile-only takes neither"),
    ],
    ids=lambda x: " ".join(x)[:40],
)
def test_mistakes_are_one_line_before_anything_runs(
    words: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(benchmark.measure, "measure", None)
    assert main(["benchmark", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert message in err


def test_without_pytorch_one_line_says_what_to_do(
    checkout: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main([*TINY, "--baseline=torch"]) == 2
    assert "pip install -e '.[benchmark]'" in capsys.readouterr().err


def test_outside_a_checkout_there_is_no_baseline(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkout / "benchmarks" / "torch_supernet.py").unlink()
    assert main([*TINY, "--baseline=torch"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "run from a checkout" in err


def test_a_baseline_that_refuses_is_a_mistake_of_the_users(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script, accepts = (
        checkout / "benchmarks" / "torch_supernet.py",
        'return {"versions"',
    )
    assert accepts in BASELINE
    script.write_text(
        BASELINE.replace(accepts, 'return {"refused": "not here", "versions"')
    )
    assert main([*TINY, "--baseline=torch"]) == 2
    assert "--baseline torch: not here" in capsys.readouterr().err
