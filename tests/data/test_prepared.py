"""Preparation under fire: kills, two at once, damage, a read-only place."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from darts_jax.data import arrays, load_dataset
from darts_jax.errors import UserError

SLOW = """
import sys, time
from darts_jax.data import load_dataset, synthetic
examples = synthetic._examples
def slow(*arguments):
    for example in examples(*arguments):
        time.sleep({pause})
        yield example
synthetic._examples = slow
print(load_dataset("synthetic", num_examples=100, data_dir=sys.argv[1]).train_images.sum())
"""


def _start(data_dir: Path, pause: float) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", SLOW.format(pause=pause), str(data_dir)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _load(data_dir: Path):
    return load_dataset("synthetic", num_examples=100, data_dir=str(data_dir))


def _directory(data_dir: Path) -> Path:
    (info,) = data_dir.rglob("dataset_info.json")
    return info.parent


def test_a_killed_preparation_is_redone(tmp_path: Path) -> None:
    child = _start(tmp_path, pause=0.2)  # 25 s if it were left alone
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.rglob("incomplete.*")):
            assert child.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()
    assert list(tmp_path.rglob("incomplete.*"))
    dataset = _load(tmp_path)
    assert len(dataset.train_images) == 100
    assert not list(tmp_path.rglob("incomplete.*"))
    reference = _load(tmp_path / "undisturbed")
    np.testing.assert_array_equal(dataset.train_images, reference.train_images)


def test_two_processes_prepare_at_once(tmp_path: Path) -> None:
    children = [_start(tmp_path, pause=0.02) for _ in range(2)]
    answers = [child.communicate(timeout=120) for child in children]
    assert [child.returncode for child in children] == [0, 0], answers
    assert answers[0][0] == answers[1][0]
    assert sum("waiting for another process" in errors for _, errors in answers) == 1
    assert int(answers[0][0]) == _load(tmp_path).train_images.sum()


def test_half_written_arrays_are_never_read(tmp_path: Path, monkeypatch) -> None:
    """An interrupt while decoding leaves nothing that a later run would take."""

    def interrupted(path: Path) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(arrays, "_sha256", interrupted)
        with pytest.raises(KeyboardInterrupt):
            _load(tmp_path)
    directory = _directory(tmp_path)
    assert not list(directory.glob("arrays-*")) + list(directory.glob(".arrays.*"))
    (directory / ".arrays.1").mkdir()  # as a kill at the same moment leaves it
    assert len(_load(tmp_path).train_images) == 100
    assert not list(directory.glob(".arrays.*"))


@pytest.mark.parametrize("name", arrays.FILES)
def test_damaged_arrays_are_made_again(tmp_path: Path, name: str) -> None:
    dataset = _load(tmp_path)
    (path,) = tmp_path.rglob(f"{name}.npy")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # a value, not the header: numpy alone would not notice
    path.write_bytes(data)
    again = _load(tmp_path)
    for first, second in zip(dataset[1:5], again[1:5], strict=True):
        np.testing.assert_array_equal(first, second)
    path.write_bytes(b"")
    np.testing.assert_array_equal(_load(tmp_path).test_images, dataset.test_images)


def test_damaged_records_are_one_line(tmp_path: Path) -> None:
    _load(tmp_path)
    (path,) = tmp_path.rglob("*train.array_record*")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(
        UserError, match="is damaged .* delete that directory"
    ) as caught:
        _load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_set_stored_by_tensorflow_is_one_line(tmp_path: Path) -> None:
    _load(tmp_path)
    path = _directory(tmp_path) / "dataset_info.json"
    info = json.loads(path.read_text())
    path.write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    with pytest.raises(UserError, match="stored as tfrecord"):
        _load(tmp_path)


def test_records_in_any_order_are_sorted(tmp_path: Path, monkeypatch) -> None:
    """Other tools store examples in hash order; the id says where they belong."""
    from darts_jax.data import builder

    reference = _load(tmp_path / "plain")
    info = builder.tfds.core.DatasetInfo

    def shuffling(**arguments):
        return info(**arguments | {"disable_shuffling": False})

    monkeypatch.setattr(builder.tfds.core, "DatasetInfo", shuffling)
    shuffled = _load(tmp_path / "shuffled")
    directory = _directory(tmp_path / "shuffled")
    records = builder.tfds.builder_from_directory(directory).as_data_source("train")
    assert records[0]["id"] != b"train_00000"
    np.testing.assert_array_equal(shuffled.train_images, reference.train_images)
    np.testing.assert_array_equal(shuffled.train_labels, reference.train_labels)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(UserError, match="cannot write to the data directory") as caught:
        load_dataset("digits", data_dir=str(blocked / "data"))
    assert "DARTS_JAX_DATA" in str(caught.value) and "\n" not in str(caught.value)


def test_a_prepared_set_in_a_read_only_place(tmp_path: Path, monkeypatch) -> None:
    dataset = _load(tmp_path)
    for path in tmp_path.rglob("arrays-*/arrays.json"):
        path.unlink()
    before = sorted(tmp_path.rglob("*"))

    # What a read-only file system does, also to root.
    def refuse(*arguments, **options):
        raise OSError(30, "Read-only file system")

    real_open = Path.open

    def open_to_read(self, mode="r", *arguments, **options):
        return refuse() if "w" in mode else real_open(self, mode, *arguments, **options)

    monkeypatch.setattr(Path, "open", open_to_read)
    monkeypatch.setattr(Path, "mkdir", refuse)
    again = _load(tmp_path)
    np.testing.assert_array_equal(again.train_images, dataset.train_images)
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(UserError, match="Read-only file system"):
        _load(tmp_path / "empty")


def test_full_disk_is_one_line(tmp_path: Path, monkeypatch) -> None:
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(arrays.np.lib.format, "open_memmap", full)
    with pytest.raises(UserError, match="No space left on device"):
        _load(tmp_path)
    monkeypatch.undo()
    assert len(_load(tmp_path).train_images) == 100


def test_large_images_are_mapped(tmp_path: Path, monkeypatch) -> None:
    dataset = _load(tmp_path)
    monkeypatch.setattr(arrays, "MAP_BYTES", 1000)
    mapped = _load(tmp_path)
    assert isinstance(mapped.train_images, np.memmap)
    np.testing.assert_array_equal(mapped.train_images, dataset.train_images)


def test_the_bar_and_the_lines(monkeypatch, capsys, tmp_path: Path) -> None:
    from darts_jax.data import progress

    monkeypatch.setattr(progress, "QUIET_SECONDS", -1.0)
    _load(tmp_path)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "preparing synthetic, 125 images ...\n" in printed.err
    monkeypatch.setattr(progress, "QUIET_SECONDS", 2.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress.progress("counting", 2) as advance:
        advance(2)
    assert "Traceback" not in capsys.readouterr().err
