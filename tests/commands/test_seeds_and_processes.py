"""Many seeds, and many processes, by way of the commands: the same runs as alone."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from darts_jax.__main__ import main

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SMALL = (
    "--config.model.num_nodes=1",
    "--config.model.num_cells=2",
    "--config.model.channels=2",
    "--noconfig.progress",
)
NOTE = "note: model.num_cells=2 makes reduction cells only"
RANDOM_CELL = "--config.genotype=random"
SAME_KEYS = ("accuracy", "loss", "entropy")
DEADLINE = 600.0


def words(config: str, *options: str) -> list[str]:
    name, _, arg = config.partition(":")
    return [name.partition("_")[0], f"--config={CONFIGS / name}.py:{arg}", *options]


def read(workdir: Path, name: str) -> Any:
    text = (workdir / name).read_text()
    if name.endswith(".jsonl"):
        return [json.loads(line) for line in text.splitlines()]
    return json.loads(text)


def outcome(workdir: Path) -> dict[str, Any]:
    """All that a run leaves, except for times."""
    result = read(workdir, "result.json")
    latest = max(p for p in (workdir / "checkpoints").iterdir() if p.name.isdecimal())
    return {
        "result": {k: v for k, v in result.items() if k not in ("seconds", "finished")},
        "leaves": read(latest, "manifest.json")["leaves"],
        "config": read(workdir, "config.json"),
        **{
            name: (workdir / name).read_text()
            for name in ("metrics.jsonl", "genotypes.jsonl", "genotype.json")
            if (workdir / name).exists()
        },
    }


def assert_near(found: Path, wanted: Path, rtol: float) -> None:
    """The rows of two runs agree, and so do their genotypes."""
    assert len(read(found, "metrics.jsonl")) == len(read(wanted, "metrics.jsonl"))
    for row, other in zip(
        read(found, "metrics.jsonl"), read(wanted, "metrics.jsonl"), strict=True
    ):
        assert row.keys() == other.keys()
        for key in row:
            np.testing.assert_allclose(row[key], other[key], rtol=rtol, atol=rtol)
    assert read(found, "genotype.json") == read(wanted, "genotype.json")


@pytest.mark.parametrize(
    ("config", "options"),
    [
        ("search_digits:tiny", ()),
        pytest.param("retrain_digits:tiny", (RANDOM_CELL,), marks=pytest.mark.slow),
    ],
)
def test_seeds_in_turn_have_the_bits_of_single_runs(
    config: str,
    options: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    both, command = tmp_path / "both", words(config, *SMALL, *options)
    many = [*command, "--config.seed=5", "--config.num_seeds=2", f"--workdir={both}"]
    assert main(many) == 0
    out = capsys.readouterr().out
    assert "2 seeds: " in out and " +- " in out
    for seed in (5, 6):
        alone = tmp_path / f"alone{seed}"
        assert main([*command, f"--config.seed={seed}", f"--workdir={alone}"]) == 0
        assert outcome(both / f"seed{seed}") == outcome(alone)
    assert outcome(both / "seed5") != outcome(both / "seed6")
    assert main(["report", str(both)]) == 0
    assert "(n = 2" in capsys.readouterr().out
    page = (both / "report.html").read_text()
    assert "seed5" in page and "seed6" in page


def test_seeds_together_are_near_single_runs_and_resume_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from darts_jax.training import checkpoints

    command = words("search_digits:tiny", *SMALL, "--config.num_epochs=3")
    together = [*command, "--config.num_seeds=2", "--config.parallel.seeds=together"]
    assert main([*together, f"--workdir={tmp_path / 'whole'}"]) == 0
    for seed in (0, 1):
        alone = tmp_path / f"alone{seed}"
        assert main([*command, f"--config.seed={seed}", f"--workdir={alone}"]) == 0
        assert_near(tmp_path / "whole" / f"seed{seed}", alone, 1e-4)

    save, saved = checkpoints.save, []

    def dying(directory: Path, *arguments: Any, **options: Any) -> None:
        """Kills the run between the saves of its two seeds."""
        if len(saved) == 3:
            raise KeyboardInterrupt
        saved.append(directory)
        save(directory, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save", dying)
        assert main([*together, f"--workdir={tmp_path / 'killed'}"]) == 130
    steps = [
        len(checkpoints.saved_steps(tmp_path / "killed" / f"seed{s}" / "checkpoints"))
        for s in (0, 1)
    ]
    assert steps == [2, 1]
    assert main([*together, f"--workdir={tmp_path / 'killed'}"]) == 0
    for seed in ("seed0", "seed1"):
        assert outcome(tmp_path / "killed" / seed) == outcome(tmp_path / "whole" / seed)


@pytest.mark.parametrize("mode", ["in_turn", "together"])
def test_a_seed_that_diverges_leaves_the_others_theirs(
    mode: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In one program the others are killed after it, too, and end with the same bits."""
    import jax
    import jax.numpy as jnp

    from darts_jax.training import checkpoints
    from darts_jax.training import search as searching

    steps, make_step = 4, searching.data_step
    lost = jax.random.key_data(jax.random.split(jax.random.key(1), 3)[2])  # as a run's

    def spoilt(*arguments: Any) -> Any:
        """Seed 1 has no loss in the second epoch."""
        step = make_step(*arguments)

        def spoil(state: Any, *rest: Any) -> Any:
            bad = (state.step == steps) & (jax.random.key_data(state.key) == lost).all()
            state, sums = step(state, *rest)
            return state, {k: jnp.where(bad, jnp.nan, v) for k, v in sums.items()}

        return spoil

    monkeypatch.setattr(searching, "data_step", spoilt)
    command = words("search_digits:tiny", *SMALL, "--config.num_epochs=3")
    command += ["--config.checkpoint_every=9", f"--config.parallel.seeds={mode}"]
    many = [*command, "--config.num_seeds=3"]
    whole = tmp_path / "whole"
    assert main([*many, f"--workdir={whole}"]) == 2
    out, err = capsys.readouterr()
    assert err.startswith(NOTE) and err.count("\n") == 2 and "error: seed1: " in err
    assert " is nan in epoch 1: training diverged; of the checkpoints none" in err
    assert "seed 0:" in out and "seed 1:" not in out and "2 seeds: " in out
    assert len(read(whole / "seed1", "metrics.jsonl")) == 1
    assert not (whole / "seed1" / "result.json").exists()
    for seed in (0, 2):
        alone = tmp_path / f"alone{seed}"
        assert main([*command, f"--config.seed={seed}", f"--workdir={alone}"]) == 0
        if mode == "in_turn":
            assert outcome(whole / f"seed{seed}") == outcome(alone)
        else:
            assert_near(whole / f"seed{seed}", alone, 1e-4)
    if mode == "in_turn":
        return

    save, saved = checkpoints.save, []

    def dying(*arguments: Any, **options: Any) -> None:
        """Kills the run at the second save of the first seed that is left."""
        if len(saved) == 2:
            raise KeyboardInterrupt
        saved.append(arguments[0])
        save(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save", dying)
        assert main([*many, f"--workdir={tmp_path / 'killed'}"]) == 130
    assert main([*many, f"--workdir={tmp_path / 'killed'}"]) == 2
    for seed in ("seed0", "seed2"):
        assert outcome(tmp_path / "killed" / seed) == outcome(whole / seed)


def test_several_steps_a_call_are_the_same_run(tmp_path: Path) -> None:
    command = words("search_digits:tiny", *SMALL, "--config.log_every_steps=3")
    for steps in (1, 3):
        place = [f"--config.parallel.steps_per_call={steps}"]
        assert main([*command, *place, f"--workdir={tmp_path / str(steps)}"]) == 0
    assert_near(tmp_path / "3", tmp_path / "1", 1e-5)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(
    command: list[str], processes: int, devices: int
) -> list["subprocess.Popen[str]"]:
    """Starts the processes of one run, each with so many simulated devices."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "XLA_FLAGS": flags, "DARTS_JAX_KERNELS": "0"}
    port, started = free_port(), []
    for index in range(processes):
        mine = [sys.executable, "-m", "darts_jax", *command]
        if processes > 1:
            mine += [f"--coordinator=127.0.0.1:{port}", f"--processes={processes}"]
            mine += [f"--process={index}"]
        started.append(
            subprocess.Popen(
                mine,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return started


def finish(started: list["subprocess.Popen[str]"], status: int = 0) -> list[str]:
    """Waits for the processes, which must all end so; returns what they printed."""
    printed = []
    try:
        for process in started:
            out, err = process.communicate(timeout=DEADLINE)
            assert process.returncode == status, err
            printed.append(out)
    finally:
        for process in started:
            process.kill()
            process.wait()
    return printed


def run_as(command: list[str], processes: int, devices: int) -> list[str]:
    return finish(start(command, processes, devices))


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("config", "options"),
    [
        ("search_digits:tiny", ("--config.evaluate_every=1",)),
        pytest.param(
            "retrain_digits:tiny",
            (RANDOM_CELL, "--config.dataset.test_limit=30"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "search_digits:tiny",
            ("--config.dataset.streaming=always", "--config.dataset.workers=1"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "search_digits:tiny",
            ("--config.num_seeds=2", "--config.parallel.seeds=together"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_two_processes_are_one_run(
    config: str, options: tuple[str, ...], tmp_path: Path
) -> None:
    command = words(config, *SMALL, *options)
    one, two = tmp_path / "one", tmp_path / "two"
    run_as([*command, f"--workdir={one}"], 1, 1)
    first, second = run_as([*command, f"--workdir={two}"], 2, 2)
    assert first and second == ""  # the first process writes and speaks
    seeds = ["seed0", "seed1"] if "--config.num_seeds=2" in options else ["."]
    for seed in seeds:
        assert_near(two / seed, one / seed, 1e-4)
        manifest = read(two / seed, "manifest.json")
        assert len(manifest["devices"]) == 4 and manifest["processes"] == 2


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_stopped_in_two_processes_resumed_in_one(
    wait_for_epochs: Callable[..., float], tmp_path: Path
) -> None:
    """SIGTERM to one process stops both; another number of devices goes on."""
    sizes = ("--config.num_epochs=6", "--config.dataset.limit=400")
    command = words("search_digits:tiny", *SMALL, *sizes)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run_as([*command, f"--workdir={whole}"], 2, 2)
    resumed = [*command, f"--workdir={stopped}"]
    started = start(resumed, 2, 2)
    wait_for_epochs(started[0], stopped, 1, DEADLINE)
    started[1].terminate()
    finish(started, 143)
    assert not (stopped / "result.json").exists()
    run_as(resumed, 1, 2)
    assert_near(stopped, whole, 1e-3)

    again = tmp_path / "again"
    started = start([*command, f"--workdir={again}"], 2, 2)
    wait_for_epochs(started[0], again, 1, DEADLINE)
    started[0].terminate()
    finish(started, 143)
    run_as([*command, f"--workdir={again}"], 2, 2)
    assert outcome(again) == outcome(whole)  # the same processes: the same bits


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--processes=2"], "--processes needs --coordinator and --process too"),
        (
            ["--coordinator=localhost", "--processes=1", "--process=0"],
            "--coordinator=localhost: expected HOST:PORT",
        ),
        (
            ["--coordinator=x:1", "--processes=0", "--process=0"],
            "--processes=0: expected at least 1",
        ),
        (
            ["--coordinator=x:1", "--processes=2", "--process=two"],
            "--process=two: expected a whole number",
        ),
        (
            ["--coordinator=x:1", "--processes=2", "--process=2"],
            "--process=2: choose 0 to 1",
        ),
    ],
)
def test_mistakes_about_processes_are_one_line(
    flags: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = words("search_digits:tiny", f"--workdir={tmp_path / 'r'}", *flags)
    assert main(command) == 2
    err = capsys.readouterr().err
    assert text in err and err.count("\n") == 1
    assert not (tmp_path / "r").exists()


def test_batch_that_does_not_divide_is_found_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--config.batch_size=10", "--config.accumulate=4")
    place = f"--workdir={tmp_path / 'r'}"
    assert main(words("search_digits:tiny", *options, place)) == 2
    assert (
        "config.batch_size=10 does not divide among accumulate=4 parts: choose 8 or 12"
        in (capsys.readouterr().err)
    )
    assert not (tmp_path / "r" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("config", "options"),
    [
        ("search_digits:tiny", ("--config.num_seeds=3",)),
        ("retrain_digits:tiny", (RANDOM_CELL, "--config.dataset.streaming=always")),
    ],
)
def test_dry_run_says_what_a_run_takes(
    config: str,
    options: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*words(config, *SMALL, *options), "--dry-run"]) == 0
    out = capsys.readouterr().out
    lines = {line.split("  ")[0]: line for line in out.splitlines()}
    steps = 4 if config.startswith("search") else 8
    assert f"{steps} an epoch, {2 * steps} in all; batch 8" in lines["steps"]
    assert " MiB a device: state and data " in lines["memory"]
    assert "along data" in lines["devices"] and "to trace" in lines["compilation"]
    if "--config.num_seeds=3" in options:
        assert "3 seeds, one after another" in lines["devices"]
        assert "alphas" in lines["parameters"]
    else:
        assert "streamed" in lines["data"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("config", "options"),
    [
        ("search_digits:tiny", ()),
        ("retrain_digits:tiny", (RANDOM_CELL,)),
        ("retrain_digits:tiny", (RANDOM_CELL, "--config.dataset.streaming=always")),
        pytest.param(
            "search_digits:tiny",
            ("--config.num_seeds=2", "--config.parallel.seeds=together"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_program_of_a_dry_run_is_kept_for_the_run(
    config: str, options: tuple[str, ...], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    quick = {
        "DARTS_JAX_CACHE": str(cache),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "DARTS_JAX_KERNELS": "0",
    }
    place = f"--workdir={tmp_path / 'run'}"
    for last in ("--dry-run", place):
        command = [sys.executable, "-m", "darts_jax"]
        command += words(config, *SMALL, *options, last)
        subprocess.run(command, env=os.environ | quick, check=True, capture_output=True)
        assert len(list(cache.glob("jit_steps-*-cache"))) == 1, last


def test_out_of_memory_is_one_line_that_helps(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import jax
    import jax.numpy as jnp

    from darts_jax.training import search as searching

    def too_much(*_: Any) -> Any:
        return jax.jit(lambda: jnp.ones(1 << 40))().block_until_ready()

    monkeypatch.setattr(searching, "start", too_much)
    place = f"--workdir={tmp_path / 'r'}"
    assert main(words("search_digits:tiny", *SMALL, place)) == 2
    err = capsys.readouterr().err
    assert err.startswith(NOTE) and err.count("\n") == 2 and "out of memory" in err
    for field in ("accumulate", "model.remat", "precision", "model.channels"):
        assert f"config.{field}" in err


@pytest.mark.parametrize(
    "reason",
    [
        "INTERNAL: Failed to initialize BLASLT support [executable_name='jit_steps']",
        "FAILED_PRECONDITION: DNN library initialization failed. Look at the errors above",
    ],
)
def test_a_gpu_without_memory_for_its_libraries_is_one_line(
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from jax.errors import JaxRuntimeError

    from darts_jax.training import search as searching

    def refused(*_: Any) -> Any:
        raise JaxRuntimeError(reason)

    monkeypatch.setattr(searching, "start", refused)
    place = f"--workdir={tmp_path / 'r'}"
    assert main(words("search_digits:tiny", *SMALL, place)) == 2
    err = capsys.readouterr().err
    assert err.startswith(NOTE) and err.count("\n") == 2
    assert "a GPU library did not start" in err and reason in err


def test_a_platform_that_jax_does_not_find_is_one_line(tmp_path: Path) -> None:
    command = words("search_digits:tiny", f"--workdir={tmp_path / 'r'}")
    done = subprocess.run(
        [sys.executable, "-m", "darts_jax", *command],
        env=os.environ | {"JAX_PLATFORMS": "tpux"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "JAX finds no device (JAX_PLATFORMS='tpux'" in done.stderr


def test_help_names_the_flags_of_runs(capsys: pytest.CaptureFixture[str]) -> None:
    call: Callable[..., int] = main
    assert call(["search", "--help"]) == 0
    out = capsys.readouterr().out
    for flag in ("--dry-run", "--distributed", "--coordinator"):
        assert flag in out
