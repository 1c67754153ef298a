"""Runs on streamed data: the same bits as from memory, and after any stop."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from darts_jax.__main__ import main
from darts_jax.training import retrain as retraining
from darts_jax.training import search as searching

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SMALL = (
    "--config.model.num_nodes=1",
    "--config.model.num_cells=1",
    "--config.model.channels=2",
    "--config.model.primitives=('none','skip_connect')",  # they compile at once
    "--noconfig.progress",
)
DIGITS = ("--config.dataset.mean=(0.3,)", "--config.dataset.std=(0.3,)")
RANDOM_CELL = "--config.genotype=random"
FOLDER = {"a": 24, "b": 20, "c": 22}


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARTS_JAX_DATA", str(tmp_path / "prepared"))


def words_of(config: str, workdir: Path, *options: str) -> list[str]:
    name, _, arg = config.partition(":")
    command = [name.partition("_")[0], f"--config={CONFIGS / name}.py:{arg}"]
    return [*command, f"--workdir={workdir}", *SMALL, *options]


def outcome(workdir: Path) -> dict[str, Any]:
    """All that a run leaves, except for times."""
    result = json.loads((workdir / "result.json").read_text())
    folders = (workdir / "checkpoints").iterdir()
    latest = max((p for p in folders if p.name.isdecimal()), key=lambda p: int(p.name))
    found = {
        "result": {k: v for k, v in result.items() if k not in ("seconds", "finished")},
        "checkpoint": json.loads((latest / "manifest.json").read_text()),
        "metrics": (workdir / "metrics.jsonl").read_text(),
        "genotype": (workdir / "genotype.json").read_text(),
    }
    return found


class KilledError(Exception):
    """Stands for a kill: nothing is saved any more."""


def kill_at(module: Any, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the run die before the given step of this process."""
    plan_of, calls = module.plan_of, []

    def dying(*arguments: Any) -> Any:
        plan = plan_of(*arguments)

        def one_step(*arguments: Any) -> Any:
            if len(calls) == step:
                raise KilledError
            calls.append(1)
            return plan.step(*arguments)

        return plan._replace(step=one_step)

    monkeypatch.setattr(module, "plan_of", dying)


@pytest.mark.parametrize(
    ("config", "options"),
    [
        ("search_digits:tiny", ("--config.evaluate_every=1",)),
        ("retrain_digits:tiny", (RANDOM_CELL, "--config.dataset.test_limit=30")),
    ],
)
def test_streamed_runs_have_the_bits_of_resident_ones(
    config: str, options: tuple[str, ...], tmp_path: Path
) -> None:
    for mode in ("never", "always"):
        mode_word = f"--config.dataset.streaming={mode}"
        words = words_of(config, tmp_path / mode, *options, *DIGITS, mode_word)
        assert main(words) == 0
    assert outcome(tmp_path / "always") == outcome(tmp_path / "never")


@pytest.mark.parametrize(
    ("config", "module", "options"),
    [
        ("search_imagenet:tiny", searching, ()),
        ("retrain_imagenet:tiny", retraining, (RANDOM_CELL,)),
    ],
)
def test_killed_run_goes_on_bit_for_bit(
    config: str,
    module: Any,
    options: tuple[str, ...],
    odd_folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Odd sizes, crops, colours; resumed with other numbers of workers and batches ahead."""
    odd_folder(FOLDER, "train"), odd_folder({"a": 5, "b": 6, "c": 2}, "test")
    options += (f"--config.dataset.path={tmp_path / 'odd'}",)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(words_of(config, whole, *options)) == 0
    rows = [json.loads(r) for r in (whole / "metrics.jsonl").read_text().splitlines()]
    per_epoch = rows[0]["step"]
    assert len(rows) == 2 and per_epoch > 1
    with monkeypatch.context() as patch:
        kill_at(module, per_epoch + 1, patch)
        with pytest.raises(KilledError):
            main(words_of(config, killed, *options))
    options += ("--config.dataset.workers=0", "--config.dataset.prefetch=0")
    assert main(words_of(config, killed, *options)) == 0
    assert outcome(killed) == outcome(whole)
    # Nothing was converted.
    assert not list(tmp_path.rglob("*.array_record*"))


def test_corrupt_image_stops_the_run_with_one_line(
    odd_folder: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Repaired, the same command goes on."""
    root = odd_folder(FOLDER, "train")
    odd_folder({"a": 5, "b": 6, "c": 2}, "test")
    bad = root / "train" / "a" / "1.jpg"
    good = bad.read_bytes()
    bad.write_bytes(good[:50])
    options = (RANDOM_CELL, f"--config.dataset.path={root}")
    options += ("--config.dataset.limit=0", "--config.num_epochs=1")
    words = words_of("retrain_imagenet:tiny", tmp_path / "run", *options)
    capsys.readouterr()
    assert main(words) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and f"cannot read image {bad} (" in err
    bad.write_bytes(good)
    assert main(words) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--config.dataset.workers=-1",), r"config\.dataset\.workers is -1 but must"),
        (("--config.dataset.prefetch=-2",), r"config\.dataset\.prefetch is -2"),
        (("--config.dataset.streaming=yes",), r"choices: always, auto, never"),
        (("--config.dataset.fraction=0",), r"dataset\.fraction is 0\.0 but must"),
        (("--config.dataset.test_crop=1.5",), r"dataset\.test_crop is 1\.5"),
        (("--config.dataset.std=(0.1,0.2,0)",), r"dataset\.std is .* must"),
        (("--config.dataset.mean=('x',)",), r"dataset\.mean is .* must"),
        (("--config.dataset.image_size=0",), r"dataset\.image_size=N"),
        (("--config.batch_size=99",), r"config\.batch_size=99 is more than the 66"),
    ],
)
def test_mistakes_are_one_line(
    options: tuple[str, ...],
    message: str,
    odd_folder: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = odd_folder(FOLDER, "train")
    odd_folder({"a": 5, "b": 6, "c": 2}, "test")
    options += (
        RANDOM_CELL,
        f"--config.dataset.path={root}",
        "--config.dataset.limit=0",
    )
    capsys.readouterr()
    assert main(words_of("retrain_imagenet:tiny", tmp_path / "run", *options)) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and re.search(message, err), err


@pytest.mark.slow
def test_real_kills_and_signals(
    odd_folder: Callable[..., Path],
    wait_for_epochs: Callable[..., float],
    tmp_path: Path,
) -> None:
    """Processes stopped in the middle of an epoch end in time, and go on bit for bit."""
    root = odd_folder({"a": 120, "b": 100, "c": 110}, "train")
    odd_folder({"a": 5, "b": 6, "c": 2}, "test")
    options = (RANDOM_CELL, f"--config.dataset.path={root}", "--config.num_epochs=16")
    options += ("--config.dataset.limit=0",)
    config = "retrain_imagenet:tiny"
    assert main(words_of(config, tmp_path / "whole", *options)) == 0
    workdir = tmp_path / "stopped"
    command = [sys.executable, "-m", "darts_jax", *words_of(config, workdir, *options)]
    steps = []
    for signum in (signal.SIGKILL, signal.SIGTERM, signal.SIGTERM):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            seconds = wait_for_epochs(process, workdir, 2, 300)
            time.sleep(0.4 * seconds)  # not near the border of an epoch
            os.kill(process.pid, signum)
            _, err = process.communicate(timeout=300)
        finally:
            process.kill()
            process.wait()
        killed = signum == signal.SIGKILL
        assert process.returncode == (-signum if killed else 128 + signum), err
        saved = [int(p.name) for p in (workdir / "checkpoints").glob("[0-9]*")]
        steps.append(max(saved, default=0))
    assert any(step % (330 // 8) for step in steps), steps
    assert main(words_of(config, workdir, *options)) == 0
    assert outcome(workdir) == outcome(tmp_path / "whole")
