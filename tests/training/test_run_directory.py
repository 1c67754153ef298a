"""The run directory: lock, config on resume, rows that survive a kill, signals."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from darts_jax.data import Dataset
from darts_jax.errors import UserError
from darts_jax.training.interrupt import Interrupt
from darts_jax.training.records import truncate_rows, write_atomic, write_json
from darts_jax.training.run_directory import follow_run, open_run, read_run
from darts_jax.training.same_run import fingerprint

CONFIG = {"seed": 1, "progress": True, "weights": {"clip": 5.0}, "tensorboard": False}

HOLD = """
import sys, time
from pathlib import Path
from darts_jax.training.run_directory import open_run
run = open_run(Path(sys.argv[1]), "search", {"seed": 1}, ["x"])
print("held", flush=True)
time.sleep(60)
"""

LOOP = """
import signal, sys, time
from darts_jax.training.interrupt import Interrupt
signal.signal(signal.SIGINT, getattr(signal, sys.argv[2]))
with Interrupt() as interrupt:
    print("ready", flush=True)
    for _ in range(600):
        if interrupt and sys.argv[1] == "polite":
            break
        time.sleep(0.05)
sys.exit(interrupt.exit_status)
"""


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline()  # it is ready
    return process


def test_new_run_records_config_and_manifest(tmp_path: Path) -> None:
    with open_run(tmp_path / "a" / "b", "search", CONFIG, ["--x"]) as run:
        assert not run.resumed
        assert run.result is None
    assert read_run(run.path) == ("search", CONFIG)
    manifest = json.loads((run.path / "manifest.json").read_text())
    assert manifest["argv"] == ["--x"]
    assert manifest["seed"] == 1
    assert manifest["backend"] == "cpu"
    assert manifest["cores"] >= 1
    assert manifest["versions"]["jax"] == jax.__version__
    assert manifest["restarts"] == []


def test_same_config_resumes(tmp_path: Path) -> None:
    with open_run(tmp_path, "search", CONFIG, ["1"]) as run:
        run.append("metrics", {"epoch": 0, "step": 1})
    freed = {**CONFIG, "progress": False}
    with open_run(tmp_path, "search", freed, ["2"]) as run:
        assert run.resumed
        run.bind_data(
            {}
        )  # until then the data may be others, and the place a wrong one
    assert read_run(tmp_path)[1] == freed
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert [restart["argv"] for restart in manifest["restarts"]] == [["2"]]
    for field in ("devices", "processes", "cpu", "versions", "commit"):
        assert manifest["restarts"][0][field] == manifest[field]


def test_other_config_is_refused_with_every_difference(tmp_path: Path) -> None:
    with open_run(tmp_path, "search", CONFIG, []) as run:
        run.append("metrics", {"epoch": 0, "step": 1})
    before = (tmp_path / "config.json").read_bytes()
    other = {"seed": 2, "progress": True, "weights": {"clip": 1.0}, "new": "x"}
    with pytest.raises(UserError) as refusal:
        open_run(tmp_path, "search", other, [])
    line = str(refusal.value)
    for part in (
        "seed 1 -> 2",
        "weights.clip 5.0 -> 1.0",
        "new 'absent' -> 'x'",
    ):
        assert part in line
    assert "\n" not in line
    assert (tmp_path / "config.json").read_bytes() == before
    open_run(tmp_path, "search", CONFIG, []).close()  # the refusal left no lock


def test_a_run_that_never_began_takes_another_config(tmp_path: Path) -> None:
    with open_run(tmp_path, "retrain", CONFIG, ["1"]) as run:
        run.write_json("genotype.json", {"of": "the failed attempt"})
    other = {**CONFIG, "seed": 2}
    with open_run(tmp_path, "retrain", other, ["2"]) as run:
        assert not run.resumed
    assert read_run(tmp_path) == ("retrain", other)
    assert json.loads((tmp_path / "manifest.json").read_text())["seed"] == 2


def test_run_of_another_command_is_refused(tmp_path: Path) -> None:
    with open_run(tmp_path, "search", CONFIG, []) as run:
        run.append("metrics", {"epoch": 0, "step": 1})
    with pytest.raises(UserError, match="holds a search run"):
        open_run(tmp_path, "retrain", CONFIG, [])


def test_folder_of_something_else_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"holds other files \(thesis.tex\)"):
        open_run(tmp_path, "search", CONFIG, [])
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("manifest", [None, {}, {"command": "bert"}])
def test_a_config_of_something_else_is_not_overwritten(
    manifest: dict[str, str] | None, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    if manifest is not None:
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(UserError, match=r"holds other files \(config.json"):
        open_run(tmp_path, "search", CONFIG, [])
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_files_beside_a_run_that_never_began_are_kept(tmp_path: Path) -> None:
    open_run(tmp_path, "search", CONFIG, []).close()
    (tmp_path / "log.txt").write_text("what a job wrote")
    open_run(tmp_path, "search", CONFIG, []).close()
    (tmp_path / "genotype.json").write_text("of the user's own")
    with pytest.raises(UserError, match=r"holds a genotype.json that no run"):
        open_run(tmp_path, "search", CONFIG, [])
    assert (tmp_path / "genotype.json").read_text() == "of the user's own"


def test_other_data_are_refused_on_resume(tmp_path: Path) -> None:
    data = {"training images": 48, "classes": ["a", "b"], "mean": [0.5]}
    with open_run(tmp_path, "search", CONFIG, []) as run:
        run.bind_data({**data, "training images": 40})
    with open_run(tmp_path, "search", CONFIG, []) as run:
        run.bind_data(data)  # nothing was trained on the others
        run.append("metrics", {"epoch": 0, "step": 1})
    with open_run(tmp_path, "search", CONFIG, []) as run:
        run.bind_data(data)
        with pytest.raises(UserError, match="other data: training images 48 -> 84"):
            run.bind_data({**data, "training images": 84})
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["data"] == data and len(manifest["restarts"]) == 1


def test_fingerprint_of_data() -> None:
    labels = np.arange(4, dtype=np.int32) % 2
    dataset = Dataset(
        "own", np.zeros((4, 2, 2, 1), np.uint8), labels, *(np.zeros(0), labels[:0]),
        2, ("a", "b"), (0.5,), (0.25,),
    )  # fmt: skip
    found = fingerprint(dataset, test=False)
    assert json.loads(json.dumps(found)) == found
    assert found == fingerprint(dataset._replace(test_labels=labels), test=False)
    others = [
        dataset._replace(train_labels=labels[::-1]),
        dataset._replace(class_names=("a", "c")),
        dataset._replace(mean=(0.51,)),
        dataset._replace(train_images=np.zeros((4, 3, 2, 1), np.uint8)),
    ]
    assert all(fingerprint(other, test=False) != found for other in others)
    tested = fingerprint(dataset, test=True)
    assert fingerprint(dataset._replace(test_labels=labels), test=True) != tested


def test_a_process_with_fields_of_its_own_is_refused(tmp_path: Path) -> None:
    """They would log and save at other steps, and wait for each other for ever."""
    config = {**CONFIG, "log_every_steps": 1}
    with open_run(tmp_path, "search", config, []):
        follow_run(tmp_path, "search", {**config, "progress": False}).close()
        with pytest.raises(UserError, match="log_every_steps 1 -> 2"):
            follow_run(tmp_path, "search", {**config, "log_every_steps": 2})


@pytest.mark.parametrize("text", ["{}", "[]", "{"])
def test_a_damaged_result_is_one_line(text: str, tmp_path: Path) -> None:
    with open_run(tmp_path, "search", CONFIG, []) as run:
        (tmp_path / "result.json").write_text(text)
        with pytest.raises(UserError, match=r"result\.json") as error:
            _ = run.result
    assert "\n" not in str(error.value)


def test_start_that_was_killed_starts_again(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("999\n")
    (tmp_path / "manifest.json").write_text('{"command": "search"}')
    (tmp_path / ".config.json.tmp").write_text("{")
    with open_run(tmp_path, "search", CONFIG, []) as run:
        assert not run.resumed


def test_path_through_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot use run directory"):
        open_run(tmp_path / "file" / "run", "search", CONFIG, [])


def test_no_run_to_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"it has no config\.json"):
        read_run(tmp_path)


def test_second_process_is_refused_until_the_first_dies(tmp_path: Path) -> None:
    process = start(HOLD, str(tmp_path))
    with pytest.raises(UserError, match=f"in use by process {process.pid}"):
        open_run(tmp_path, "search", {"seed": 1}, [])
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with open_run(tmp_path, "search", {"seed": 1}, []) as run:
        assert run.config == {"seed": 1}
        with pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
            open_run(tmp_path, "search", {"seed": 1}, [])


def test_rows_are_sorted_and_finite_json(tmp_path: Path) -> None:
    with open_run(tmp_path, "search", CONFIG, []) as run:
        run.append("metrics", {"step": 3, "epoch": 0, "loss": float("nan")})
        text = (tmp_path / "metrics.jsonl").read_text()
        assert text == '{"epoch": 0, "loss": null, "step": 3}\n'
        with pytest.raises(ValueError, match="no rows 'metric'"):
            run.append("metric", {})


def test_truncation_drops_later_and_torn_rows(tmp_path: Path) -> None:
    with open_run(tmp_path, "search", CONFIG, []) as run:
        for epoch in range(4):
            run.append("metrics", {"epoch": epoch, "step": epoch * 10, "loss": 0.5})
            run.append("timing", {"epoch": epoch, "seconds": 1.0})
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b'{"epoch": 4, "st')
    with open_run(tmp_path, "search", CONFIG, []) as run:
        run.truncate_after(1)
        assert [row["epoch"] for row in run.rows("metrics")] == [0, 1]
        assert [row["epoch"] for row in run.rows("timing")] == [0, 1]
        for epoch in (2, 3):
            run.append("metrics", {"epoch": epoch, "step": epoch * 10, "loss": 0.5})
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole
    with open(tmp_path / "metrics.csv", newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["0", "1", "2", "3"]


def test_a_damaged_row_takes_no_other_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"epoch": 0}\nX"epoch": 1}\n{"epoch": 2}\n{"epoch": 3, "l')
    before = path.read_bytes()
    assert truncate_rows(path, 2) == [{"epoch": 0}, {"epoch": 2}]
    assert "metrics.jsonl: 1 damaged rows left out" in capsys.readouterr().err
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == before
    assert truncate_rows(path, 2) == [{"epoch": 0}, {"epoch": 2}]
    assert not capsys.readouterr().err


def test_nothing_to_truncate_leaves_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1, "epoch": 0}\n')
    before = path.stat().st_ino
    assert truncate_rows(path, 0) == [{"a": 1, "epoch": 0}]
    assert path.stat().st_ino == before
    assert truncate_rows(path, -1) == []
    assert path.read_text() == ""


def test_csv_has_the_columns_of_every_row(tmp_path: Path) -> None:
    with open_run(tmp_path, "retrain", CONFIG, []) as run:
        run.append("metrics", {"epoch": 0, "step": 1, "train_loss": 2.0})
        run.append("metrics", {"epoch": 1, "step": 2, "a": 0.5, "train_loss": 1.0})
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines == ["epoch,step,a,train_loss", "0,1,,2.0", "1,2,0.5,1.0"]


def test_tensorboard_is_written_where_wanted(tmp_path: Path) -> None:
    with open_run(tmp_path / "on", "search", {"tensorboard": True}, []) as run:
        run.tensorboard.scalars(3, {"loss": 1.5})
    assert list((tmp_path / "on" / "tensorboard").glob("events*"))
    with open_run(tmp_path / "off", "search", {"tensorboard": False}, []) as run:
        run.tensorboard.scalars(3, {"loss": 1.5})
    assert not (tmp_path / "off" / "tensorboard").exists()


def test_a_full_disk_ends_the_pictures_and_not_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_run(tmp_path, "search", {"tensorboard": True}, []) as run:
        (tmp_path / "tensorboard").write_text("a file where the folder should be")
        run.tensorboard.text(3, "genotype", "...")
        run.tensorboard.scalars(3, {"loss": 1.5})
        run.append("metrics", {"epoch": 0, "step": 1})
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "nothing more for TensorBoard in" in err


def test_a_complete_run_stands_while_its_data_do(tmp_path: Path) -> None:
    config = {**CONFIG, "dataset": {"path": "here", "data_dir": ""}}
    with open_run(tmp_path, "search", config, []) as run:
        run.bind_data({"lists": "1", "classes": ["a"]})
        assert not run.stands({})
        run.write_json("result.json", {"command": "search"})
    with open_run(tmp_path, "search", config, []) as run:
        assert run.stands({}) and run.stands({"lists": "1"})
        assert not run.stands({"lists": "2"})
    moved = {**CONFIG, "dataset": {"path": "there", "data_dir": ""}}
    with open_run(tmp_path, "search", moved, []) as run:
        assert not run.stands({}) and read_run(tmp_path)[1] == config
        run.bind_data({"lists": "1", "classes": ["a"]})
        assert run.stands({}) and read_run(tmp_path)[1] == moved


def test_failed_write_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, "other")
    assert json.loads(path.read_text()) == {"a": 1}


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_first_signal_is_a_flag(signum: signal.Signals) -> None:
    process = start(LOOP, "polite", "default_int_handler")
    process.send_signal(signum)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 128 + signum
    assert f"{signum.name}: saving after this step" in stderr


def test_second_signal_kills_at_once() -> None:
    process = start(LOOP, "deaf", "default_int_handler")
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    process.stderr.readline()
    process.stderr.readline()  # the first has been handled
    begin = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == -signal.SIGTERM
    assert time.monotonic() - begin < 5


def test_ignored_signal_stays_ignored() -> None:
    process = start(LOOP, "polite", "SIG_IGN")
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == 128 + signal.SIGTERM


def test_handlers_are_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Interrupt() as interrupt:
        assert signal.getsignal(signal.SIGTERM) != before
        assert not interrupt
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.signum == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
