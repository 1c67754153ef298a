"""Several seeds: a run each, together or in turn, with the same files either way."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from darts_jax.errors import UserError
from darts_jax.training import checkpoints
from darts_jax.training.run_directory import open_run
from darts_jax.training.seeds import (
    folders,
    groups,
    mean_and_spread,
    open_runs,
    remaining_groups,
    trains_together,
)

CONFIG = {"seed": 3, "num_seeds": 2, "x": 1}


def parallel(mode: str, seed_devices: int = 0) -> Any:
    fields = SimpleNamespace(seeds=mode, seed_devices=seed_devices)
    return SimpleNamespace(parallel=fields)


def test_one_seed_is_the_folder_itself(tmp_path: Path) -> None:
    config = {"seed": 3, "num_seeds": 1}
    assert folders(tmp_path / "r", config) == {tmp_path / "r": config}


def test_every_seed_is_a_run_that_could_stand_alone(tmp_path: Path) -> None:
    with open_runs(tmp_path, "search", CONFIG, ["x"]) as runs:
        assert [run.path.name for run in runs] == ["seed3", "seed4"]
        assert [run.config["seed"] for run in runs] == [3, 4]
        with pytest.raises(UserError, match="in use"):
            open_run(tmp_path / "seed3", "search", {**CONFIG, "num_seeds": 1}, [])
    recorded = json.loads((tmp_path / "seed4" / "config.json").read_text())
    assert recorded == {"seed": 4, "num_seeds": 1, "x": 1}
    with open_run(tmp_path / "seed4", "search", recorded, []) as run:
        assert not run.resumed  # nothing was done in it


def test_folder_of_a_single_run_is_refused(tmp_path: Path) -> None:
    open_run(tmp_path, "search", {"seed": 3, "num_seeds": 1}, []).close()
    with pytest.raises(UserError, match="holds a single run; config.num_seeds=2"):
        folders(tmp_path, CONFIG)


@pytest.mark.parametrize(
    ("mode", "runs", "streamed", "wanted"),
    [
        ("auto", 2, False, False),  # this is a CPU
        ("together", 2, False, True),
        ("together", 1, False, False),
        ("in_turn", 2, False, False),
        ("auto", 2, True, False),
    ],
)
def test_together_or_in_turn(
    mode: str, runs: int, streamed: bool, wanted: bool
) -> None:
    assert trains_together(parallel(mode), runs, streamed) == wanted


def test_streams_feed_one_run_at_a_time() -> None:
    with pytest.raises(
        UserError, match="seeds='together' needs the data on the device"
    ):
        trains_together(parallel("together"), 2, True)


@pytest.mark.parametrize(("mode", "runs"), [("in_turn", 2), ("together", 1)])
def test_devices_along_seeds_need_seeds_together(mode: str, runs: int) -> None:
    with pytest.raises(UserError, match="seed_devices=2 needs the runs of several"):
        trains_together(parallel(mode, 2), runs, False)
    assert trains_together(parallel("together", 2), 2, False)


class FakeRun:
    """A run with checkpoints at the given steps, and perhaps a result."""

    def __init__(self, path: Path, steps: list[int], done: bool = False) -> None:
        self.path, self.checkpoints, self.resumed = path, path / "checkpoints", True
        self.result = {} if done else None
        self.diverged = ""
        for step in steps:
            checkpoints.save(self.checkpoints, step, {"x": np.ones(2)}, keep=9)


@pytest.mark.parametrize(
    ("steps", "wanted"),
    [
        ([[], []], [["0", "1"]]),
        ([[4, 8], [4]], [["0", "1"]]),  # killed between two saves: both go on from 4
        ([[8], [4]], [["0"], ["1"]]),
        ([[4, 8], [4, 8], []], [["0", "1"], ["2"]]),  # a seed that was added later
        ([[4, 8], [8, 12], [], []], [["0", "1"], ["2", "3"]]),  # both
        ([[2], [8, 12], [4, 8]], [["0"], ["1", "2"]]),  # one that had diverged
    ],
)
def test_groups_share_a_checkpoint(
    steps: list[list[int]], wanted: list[list[str]], tmp_path: Path
) -> None:
    runs: Any = [FakeRun(tmp_path / str(i), its) for i, its in enumerate(steps)]
    found = [[run.path.name for run in group] for group in groups(runs, True)]
    assert found == wanted
    assert [len(group) for group in groups(runs, False)] == [1] * len(runs)


def test_finished_runs_are_left_out(tmp_path: Path) -> None:
    runs: Any = [FakeRun(tmp_path / "0", [4], done=True), FakeRun(tmp_path / "1", [4])]
    assert groups(runs, True) == groups(runs, False) == [[runs[1]]]
    assert groups(runs[:1], True) == []
    runs[1].diverged = "its loss is nan"
    assert groups(runs, True) == groups(runs, False) == []


def test_what_a_group_loses_comes_again_as_a_smaller_one(tmp_path: Path) -> None:
    runs: Any = [FakeRun(tmp_path / str(i), [4]) for i in range(3)]
    remaining = remaining_groups(runs, True)
    assert next(remaining) == runs
    runs[1].diverged = "its loss is nan"
    assert next(remaining) == [runs[0], runs[2]]
    runs[0].result = runs[2].result = {}
    assert list(remaining) == []
    alone = remaining_groups([runs[1]], False)
    assert list(alone) == []


def test_mean_and_spread() -> None:
    assert mean_and_spread([0.5, 0.7]) == "0.6000 +- 0.1414"
