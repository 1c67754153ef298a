"""Real processes, killed and signalled at work: the same command goes on bit for bit."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

# As `python -m darts_jax`, but SIGINT works even where the tests are a background job.
ENTRY = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("darts_jax", run_name="__main__", alter_sys=True)
"""
EPOCHS = 16  # so many that no process is done before its signal, however fast it is
SIZES = (
    f"--config.num_epochs={EPOCHS}",
    "--config.dataset.limit=1200",
    "--config.model.num_nodes=1",
    "--config.model.channels=2",
    "--noconfig.progress",
)
RANDOM_CELL = ("--config.genotype=random", "--config.evaluate_every=2")
DEADLINE = 300.0  # seconds for a process to get where it is waited for
pytestmark = pytest.mark.timeout(1800)  # many processes in a row, on a busy machine


class Stop(NamedTuple):
    """A signal, sent `delay` epochs after the process has done `epochs` of them.

    Without epochs: `delay` seconds after it has the run directory's lock.
    """

    signum: signal.Signals
    epochs: int
    delay: float
    status: int


STOPS = (
    Stop(signal.SIGKILL, 0, 0.3, -signal.SIGKILL),  # it has hardly begun
    Stop(signal.SIGKILL, 2, 0.3, -signal.SIGKILL),
    # Early in an epoch: its last part is the test and the save, which end at its border.
    Stop(signal.SIGTERM, 2, 0.4, 128 + signal.SIGTERM),
    Stop(signal.SIGINT, 2, 0.3, 128 + signal.SIGINT),
)


def start(words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", ENTRY, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def stop_process(
    words: list[str], workdir: Path, stop: Stop, wait_for_epochs: Callable[..., float]
) -> str:
    """Runs the command, stops it as told and returns what it wrote to stderr."""
    process = start(words)
    try:
        unit = 1.0  # seconds
        deadline = time.monotonic() + DEADLINE
        while not (workdir / "lock").exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, "it does not get on"
            time.sleep(0.005)
        if stop.epochs:
            unit = wait_for_epochs(process, workdir, stop.epochs, DEADLINE)
        time.sleep(stop.delay * unit)
        assert process.poll() is None, "it was over before the signal"
        os.kill(process.pid, stop.signum)
        out, err = process.communicate(timeout=DEADLINE)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == stop.status, err
    assert out == ""
    assert not (workdir / "result.json").exists()
    return err


def run(words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "darts_jax", *words],
        capture_output=True,
        text=True,
        timeout=2 * DEADLINE,
    )
    assert done.returncode == 0, done.stderr


def latest_checkpoint(workdir: Path) -> dict[str, Any]:
    """The manifest of the latest checkpoint: SHA-256, shape and dtype of every leaf."""
    folder = max(p for p in (workdir / "checkpoints").iterdir() if p.name.isdecimal())
    return json.loads((folder / "manifest.json").read_text())


def outcome(workdir: Path) -> dict[str, Any]:
    """All that a run leaves, except for times and its own path."""
    result = json.loads((workdir / "result.json").read_text())
    found: dict[str, Any] = {
        "result": {k: v for k, v in result.items() if k not in ("seconds", "finished")},
        "checkpoint": latest_checkpoint(workdir),
    }
    for name in ("metrics.jsonl", "metrics.csv", "genotypes.jsonl", "genotype.json"):
        path = workdir / name
        found[name] = path.read_text() if path.exists() else None
    return found


@pytest.fixture
def check(
    repository: Path, tmp_path: Path, wait_for_epochs: Callable[..., float]
) -> Callable[..., None]:
    """Checks that a run which was stopped again and again leaves what a whole one does."""

    def checked(command: str, *options: str, stops: tuple[Stop, ...] = STOPS) -> None:
        config = repository / "configs" / f"{command}_digits.py"
        words = [command, f"--config={config}:tiny", *SIZES, *options]
        run([*words, f"--workdir={tmp_path / 'whole'}"])
        workdir = tmp_path / "stopped"
        words.append(f"--workdir={workdir}")
        steps = []
        for stop in stops:
            err = stop_process(words, workdir, stop, wait_for_epochs)
            if stop.status > 0:
                assert stop.signum.name in err and "the same command resumes" in err
                steps.append(latest_checkpoint(workdir)["step"])
        run(words)
        found, wanted = outcome(workdir), outcome(tmp_path / "whole")
        for name in wanted:
            assert found[name] == wanted[name], name
        # The signals saved in the middle of an epoch: none of its work was lost.
        per_epoch = wanted["checkpoint"]["step"] // EPOCHS
        assert any(step % per_epoch for step in steps), (steps, per_epoch)
        paths = [leaf["path"] for leaf in wanted["checkpoint"]["leaves"]]
        for part in (".weights", ".weight_opt", ".batch_stats", ".key", ".step"):
            assert any(f"['state']{part}" in path for path in paths)
        restarts = json.loads((workdir / "manifest.json").read_text())["restarts"]
        # One that was killed before its first row has left nothing and begins anew.
        assert len(restarts) >= sum(stop.epochs > 0 for stop in stops)

    return checked


def test_search(check: Callable[..., None], tmp_path: Path) -> None:
    check("search")
    leaves = latest_checkpoint(tmp_path / "whole")["leaves"]
    alphas = [leaf for leaf in leaves if leaf["path"].startswith("['state'].alpha")]
    assert len(alphas) >= 6  # the alphas and Adam's two moments of both cell kinds


def test_retrain(check: Callable[..., None]) -> None:
    """With drop path and augmentation, whose randomness must go on where it was."""
    options = (*RANDOM_CELL, "--config.augmentation.cutout=2")
    check("retrain", *options, stops=STOPS[1:3])


@pytest.mark.slow
@pytest.mark.parametrize("hypergradient", ["unrolled", "finite_difference"])
def test_second_order_search(hypergradient: str, check: Callable[..., None]) -> None:
    options = [f"--config.hypergradient={hypergradient}", "--config.checkpoint_every=3"]
    check("search", *options)


@pytest.mark.slow
def test_search_of_weights_first_and_presets_of_the_paper(
    check: Callable[..., None],
) -> None:
    options = ["--config.alphas.order=weights_first", "--config.preset=paper"]
    check("search", *options, "--config.evaluate_every=2")


def test_second_process_is_refused_while_the_first_works(
    repository: Path, tmp_path: Path
) -> None:
    config = repository / "configs" / "search_digits.py"
    words = ["search", f"--config={config}:tiny", f"--workdir={tmp_path / 'run'}"]
    words.append("--config.num_epochs=1000")  # it is still at work, however fast it is
    process = start(words)
    try:
        while not (tmp_path / "run" / "config.json").exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        second = start(words)
        _, err = second.communicate(timeout=DEADLINE)
        assert second.returncode == 2
        assert err.count("\n") == 1 and f"in use by process {process.pid}" in err
    finally:
        process.kill()
        process.wait()
