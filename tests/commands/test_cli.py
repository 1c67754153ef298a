"""`darts-jax` as a user meets it: help, and one line and status 2 for each mistake."""

import errno
import importlib.metadata
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from darts_jax import zoo
from darts_jax.__main__ import is_disk_full, main
from darts_jax.commands import COMMANDS, configuration

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
DIGITS = f"--config={CONFIGS / 'search_digits.py'}"
RETRAIN = f"--config={CONFIGS / 'retrain_digits.py'}"
WORKDIR = "--workdir=runs/x"


@pytest.fixture(autouse=True)
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for the two long commands: they load their config and stop."""
    for name in ("search", "retrain"):
        module: Any = types.ModuleType(COMMANDS[name].module)
        module.main = lambda argv, name=name: int(not configuration.load(argv, name))
        monkeypatch.setitem(sys.modules, COMMANDS[name].module, module)


MISTAKES = [
    (["serach"], "unknown command 'serach'; did you mean 'search'?"),
    (["search"], "search needs a config"),
    (["search", "--config"], "--config needs a value"),
    (["search", DIGITS], "search needs a run directory: --workdir="),
    (["search", DIGITS, "--workdir=/dev/null/x"], "/dev/null is a file, not a folder"),
    (["search", "--config=no/such.py", WORKDIR], "no config in 'no'"),
    (
        ["search", f"--config={CONFIGS}/search_digit.py", WORKDIR],
        "did you mean 'search_digits.py'?",
    ),
    (["search", f"--config={CONFIGS}", WORKDIR], "is a folder"),
    (["search", DIGITS + ":tny", WORKDIR], "unknown config argument 'tny'"),
    (["search", DIGITS, WORKDIR, "--wrkdir=x"], "did you mean '--workdir'?"),
    (["search", DIGITS, WORKDIR, "extra"], "unexpected argument 'extra'"),
    (["search", DIGITS, WORKDIR, "--config.sede=1"], "did you mean seed?"),
    (
        ["search", DIGITS, WORKDIR, "--config.channels=1"],
        "did you mean model.channels?",
    ),
    (
        ["search", DIGITS, WORKDIR, "--config.weights.lerning_rate=1"],
        "did you mean weights.learning_rate?",
    ),
    (["search", DIGITS, WORKDIR, "--config.seed=1.5"], "expected a whole number"),
    (["search", DIGITS, WORKDIR, "--config.weights.clip=x"], "expected a number"),
    (["search", DIGITS, WORKDIR, "--config.progress=x"], "expected true or false"),
    (["search", DIGITS, WORKDIR, "--config.seed=-1"], "must be from 0 to"),
    (["search", DIGITS, WORKDIR, "--config.batch_size=0"], "must be at least 1"),
    (
        [
            "retrain",
            RETRAIN,
            WORKDIR,
            "--config.drop_path=1",
            "--config.genotype=random",
        ],
        "at least 0 and below 1",
    ),
    (
        ["search", DIGITS, WORKDIR, "--config.drop_path=0.1"],
        "--config.drop_path does nothing in a search: only retrain reads it",
    ),
    (
        ["retrain", RETRAIN, WORKDIR, "--config.alphas.b1=0.1"],
        "--config.alphas.b1 does nothing in a retrain: only search reads it",
    ),
    (
        [
            "retrain",
            RETRAIN,
            WORKDIR,
            "--config.genotype=DARTS_V2",
            "--config.genotype_seed=3",
        ],
        "genotype_seed does nothing with config.genotype=DARTS_V2: only random reads it",
    ),
    (
        ["search", DIGITS, WORKDIR, "--config.finite_difference.radius=0.1"],
        "radius does nothing with config.hypergradient=first_order: only finite_diff",
    ),
    (
        ["search", DIGITS, WORKDIR, "--config.weights.learning_rate=inf"],
        "must be a finite number above 0",
    ),
    (
        ["search", DIGITS, WORKDIR, "--config.weights.weight_decay=nan"],
        "must be a finite number, 0 or above",
    ),
    (
        ["search", DIGITS, WORKDIR, "--config.dataset.train_fraction=1"],
        "must be above 0 and below 1",
    ),
    (
        ["search", DIGITS, WORKDIR, "--config.model.primitives=('skip',)"],
        "unknown primitive in config.model.primitives 'skip'",
    ),
    (["search", DIGITS, WORKDIR, "--config.preset=cod"], "choices: code, paper"),
    (["search", DIGITS, WORKDIR, "--config.space=dart"], "did you mean 'darts'?"),
    (["search", DIGITS, WORKDIR, "--config.one_shot=x"], "unknown config.one_shot 'x'"),
    (
        ["search", DIGITS, WORKDIR, "--config.hypergradient=second_order"],
        "unknown config.hypergradient 'second_order'",
    ),
    (
        ["search", DIGITS, WORKDIR, "--config.dataset.name=cifar1O"],
        "did you mean 'cifar10'?",
    ),
    (["retrain", RETRAIN, WORKDIR], "retrain needs a genotype"),
    (["zoo", "DARTS_V3"], "did you mean 'DARTS_V2'?"),
    (["zoo", "DARTS_V1", "DARTS_V2"], "one entry at a time"),
    (["report"], "report needs one or more run directories"),
    (["report", "no/such/run"], "does not exist"),
    (["doctor", "--x"], "unknown flag '--x'"),
]


@pytest.mark.parametrize(("argv", "message"), MISTAKES, ids=lambda x: " ".join(x)[-40:])
def test_mistake_is_one_line_and_status_2(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("darts-jax: error: ")
    assert message in err


def test_good_command_line_reaches_the_command() -> None:
    assert main(["search", DIGITS, WORKDIR]) == 0
    assert main(["retrain", RETRAIN, WORKDIR, "--config.genotype=random"]) == 0


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"]])
def test_overview_names_every_command(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    assert COMMANDS[name].help in capsys.readouterr().out


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from darts_jax.__main__ import main; main([]); "
        "sys.exit(bool({'jax', 'numpy', 'absl', 'ml_collections'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert done.returncode == 0


def test_status_reaches_the_shell() -> None:
    command = [sys.executable, "-m", "darts_jax", "serach"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_zoo_lists_and_shows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zoo"]) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in zoo.names())
    assert main(["zoo", "darts_v2"]) == 0
    entry = capsys.readouterr().out
    assert "3,349,342 parameters" in entry
    assert "max_pool_3x3" in entry


def test_doctor(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "cifar10").mkdir()
    assert main(["doctor", f"--data_dir={tmp_path}"]) == 0
    out = capsys.readouterr().out
    assert f"prepared in {tmp_path / 'cifar10'}" in out
    assert f"jax {importlib.metadata.version('jax')}" in out
    assert "cpu" in out


@pytest.fixture
def line_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[Exception], str]:
    """`line_of(error)` is what a command that raises it prints: one line, status 2."""

    def call(error: Exception) -> str:
        def fail(argv: list[str]) -> int:
            raise error

        monkeypatch.setattr(sys.modules[COMMANDS["search"].module], "main", fail)
        assert main(["search"]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        return err

    return call


def full_disk() -> Exception:
    try:
        raise OSError(errno.ENOSPC, "No space left on device")
    except OSError as cause:
        error = ValueError("cannot save")
        error.__cause__ = cause
        return error


@pytest.mark.parametrize(
    "error",
    [
        full_disk(),
        OSError(errno.EDQUOT, "quota"),
    ],
)
def test_full_disk_is_one_line(
    error: Exception,
    line_of: Callable[[Exception], str],
) -> None:
    assert "no space left" in line_of(error)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            OSError(errno.EROFS, "Read-only file system", "r/checkpoints"),
            "r/checkpoints:",
        ),
        (PermissionError(errno.EPERM, "Operation not permitted", "m"), "m: Operation"),
        (OSError(errno.EFBIG, "File too large"), "cannot be written: File too large"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 300), "name too long"),
    ],
)
def test_a_file_that_cannot_be_written_is_one_line(
    error: OSError,
    words: str,
    line_of: Callable[[Exception], str],
) -> None:
    assert words in line_of(error)


def test_other_failures_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(argv: list[str]) -> int:
        raise ValueError("a fault of ours: RESOURCE_EXHAUSTED memory")

    monkeypatch.setattr(sys.modules[COMMANDS["search"].module], "main", fail)
    with pytest.raises(ValueError, match="a fault of ours"):
        main(["search"])
    assert not is_disk_full(OSError(errno.EACCES, os.strerror(errno.EACCES)))


def test_interrupt_is_status_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(argv: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules[COMMANDS["search"].module], "main", interrupt)
    assert main(["search"]) == 130
