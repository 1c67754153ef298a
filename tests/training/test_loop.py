"""The epoch loop with a run of milliseconds: stops anywhere, resumes bit for bit."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darts_jax.errors import UserError
from darts_jax.training import checkpoints, loop
from darts_jax.training.parallel import Layout, one_device
from darts_jax.training.run_directory import RunDirectory, open_run
from darts_jax.training.seeds import check_converged

STEPS, EPOCHS = 4, 3
TOTAL = STEPS * EPOCHS


class State(NamedTuple):
    step: jax.Array
    x: jax.Array


class Stop:
    """An interrupt that comes when it has been asked `after` times."""

    def __init__(self, after: int = 10**6) -> None:
        self.after, self.asked = after, 0

    def __bool__(self) -> bool:
        self.asked += 1
        return self.asked > self.after


class KilledError(Exception):
    """Stands for a kill: nothing is saved any more."""


class ListFeed:
    """The numbers of an epoch, as data on the device are."""

    def order(self, state: Any, epoch: int) -> Any:
        return jax.random.normal(jax.random.key(epoch), (STEPS,))

    def arguments(self, order: Any) -> tuple[Any, None]:
        return order, None

    def close(self) -> None:
        """Nothing is open."""


@jax.jit
def one_step(state: State, sums: Any, order: jax.Array) -> Any:
    x = state.x * 1.01 + order[state.step % STEPS]
    sums = {"train_loss": sums["train_loss"] + jnp.sin(x)}
    return State(state.step + 1, x), sums


def make_plan(
    *, kill_at: int = -1, nan_at: int = -1, seen: list[int] | None = None
) -> loop.Plan:
    def step(state: State, sums: Any, order: Any, data: None, count: Any) -> Any:
        number = int(state.step)
        if number == kill_at:
            raise KilledError
        if seen is not None:
            seen.append(number)
        state, sums = one_step(state, sums, order)
        if number == nan_at:
            sums = {"train_loss": sums["train_loss"] * jnp.nan}
        return state, sums

    return loop.Plan(
        step=step,
        feed=ListFeed(),
        end_epoch=lambda run, state, epoch, means: {"x": float(state.x)},
        metrics=("train_loss",),
        steps_per_epoch=STEPS,
        images_per_step=8,
        layout=one_device(),
    )


def run(
    path: Path, plan: loop.Plan, stop: Any = None, **changes: Any
) -> tuple[State, bool]:
    fields = {
        "num_epochs": EPOCHS,
        "checkpoint_every": 1,
        "keep_checkpoints": 2,
        "log_every_steps": 2,
        "progress": False,
        "tensorboard": False,
        **changes,
    }
    start = State(jnp.zeros((), jnp.int32), jnp.float32(1))
    with open_run(path, "search", fields, []) as directory:
        config = SimpleNamespace(**fields)
        interrupt = Stop() if stop is None else stop  # asking it would count
        state, end = loop.run_epochs(plan, start, [directory], config, interrupt)
        check_converged([directory])
        return state, {"complete": True, "stopped": False}[end]


def rows(path: Path) -> bytes:
    return (path / "metrics.jsonl").read_bytes()


def saved_steps(path: Path) -> list[int]:
    return sorted(int(p.name) for p in (path / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The run that nothing interrupts."""
    path = tmp_path_factory.mktemp("whole")
    state, complete = run(path, make_plan())
    assert complete
    return SimpleNamespace(path=path, x=float(state.x), rows=rows(path))


def test_rows_hold_the_means_of_the_epochs(whole: SimpleNamespace) -> None:
    x, wanted = np.float32(1), []
    for epoch in range(EPOCHS):
        losses = []
        for value in jax.random.normal(jax.random.key(epoch), (STEPS,)):
            x = x * 1.01 + value
            losses.append(np.sin(x))
        wanted.append({"train_loss": np.mean(losses), "x": float(x)})
    found = [json.loads(line) for line in whole.rows.decode().splitlines()]
    assert [(row["epoch"], row["step"]) for row in found] == [(0, 4), (1, 8), (2, 12)]
    for row, values in zip(found, wanted, strict=True):
        assert {name: row[name] for name in values} == pytest.approx(values, rel=1e-5)


def test_timing_is_kept_apart(whole: SimpleNamespace) -> None:
    assert b"seconds" not in whole.rows
    text = (whole.path / "timing.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in text]
    assert [row["epoch"] for row in found] == [0, 1, 2]
    for row in found:
        rate = STEPS * 8 / row["seconds"]
        assert row["images_per_second"] == pytest.approx(rate, rel=1e-6)


def test_an_epochs_time_holds_that_before_a_stop(tmp_path: Path) -> None:
    run(tmp_path, make_plan(), Stop(STEPS + 1))
    stopped = json.loads((tmp_path / "stopped.json").read_text())
    assert stopped["step"] == STEPS + 2 and stopped["seconds"] > 0
    slow = {**stopped, "seconds": 1000.0 + stopped["seconds"]}
    (tmp_path / "stopped.json").write_text(json.dumps(slow))
    run(tmp_path, make_plan())
    text = (tmp_path / "timing.jsonl").read_text().splitlines()
    first, second, third = (json.loads(line) for line in text)
    assert first["seconds"] < 1000 < second["seconds"] and third["seconds"] < 1000
    rate = STEPS * 8 / second["seconds"]
    assert second["images_per_second"] == pytest.approx(rate, rel=1e-6)


@pytest.mark.parametrize("checkpoint_every", [1, 5])
@pytest.mark.parametrize("after", range(TOTAL))
def test_signal_at_any_moment(
    after: int, checkpoint_every: int, whole: SimpleNamespace, tmp_path: Path
) -> None:
    """The loop asks after each step, after an epoch's last when its row is written."""
    seen: list[int] = []
    plan = make_plan(seen=seen)
    state, complete = run(
        tmp_path, plan, Stop(after), checkpoint_every=checkpoint_every
    )
    assert int(state.step) == after + 1
    assert complete == (int(state.step) == TOTAL)
    assert saved_steps(tmp_path)[-1] == int(state.step)
    stopped = (
        len(rows(tmp_path).splitlines()) if (tmp_path / "metrics.jsonl").exists() else 0
    )
    assert stopped == int(state.step) // STEPS
    state, complete = run(tmp_path, plan, checkpoint_every=checkpoint_every)
    assert complete and float(state.x) == whole.x
    assert rows(tmp_path) == whole.rows
    assert seen == list(range(TOTAL))  # no step twice, none left out


def test_checkpoints_may_be_written_otherwise_on_resume(
    whole: SimpleNamespace, tmp_path: Path
) -> None:
    run(tmp_path, make_plan(), Stop(STEPS + 1), checkpoint_every=5)
    assert saved_steps(tmp_path) == [STEPS + 2]
    changes = {"checkpoint_every": 1, "keep_checkpoints": 1}
    state, complete = run(tmp_path, make_plan(), **changes)
    assert complete and float(state.x) == whole.x
    assert rows(tmp_path) == whole.rows
    assert saved_steps(tmp_path) == [TOTAL]


@pytest.mark.parametrize("checkpoint_every", [1, 5])
@pytest.mark.parametrize("kill_at", range(0, TOTAL, 3))
def test_kill_at_any_step(
    kill_at: int, checkpoint_every: int, whole: SimpleNamespace, tmp_path: Path
) -> None:
    with pytest.raises(KilledError):
        run(tmp_path, make_plan(kill_at=kill_at), checkpoint_every=checkpoint_every)
    seen: list[int] = []
    state, complete = run(
        tmp_path, make_plan(seen=seen), checkpoint_every=checkpoint_every
    )
    assert complete and float(state.x) == whole.x
    assert rows(tmp_path) == whole.rows
    epochs = kill_at // STEPS // checkpoint_every * checkpoint_every
    assert seen[0] == epochs * STEPS


def test_kill_between_row_and_checkpoint(
    whole: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save", fail)
        with pytest.raises(KilledError):
            run(tmp_path, make_plan())
    assert len(rows(tmp_path).splitlines()) == 1
    state, _ = run(tmp_path, make_plan())
    assert float(state.x) == whole.x
    assert rows(tmp_path) == whole.rows


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, [8, 12]),
        ({"keep_checkpoints": 1}, [12]),
        ({"checkpoint_every": 2}, [8, 12]),  # the last one always
        ({"checkpoint_every": 5}, [12]),
        ({"keep_checkpoints": 9}, [4, 8, 12]),
    ],
)
def test_checkpoints_kept(
    options: dict[str, int], steps: list[int], tmp_path: Path
) -> None:
    run(tmp_path, make_plan(), **options)
    assert saved_steps(tmp_path) == steps


def test_complete_run_goes_on_with_nothing(
    whole: SimpleNamespace, tmp_path: Path
) -> None:
    run(tmp_path, make_plan())
    seen: list[int] = []
    state, complete = run(tmp_path, make_plan(seen=seen))
    assert complete and float(state.x) == whole.x and seen == []
    assert rows(tmp_path) == whole.rows


def test_divergence_is_one_line_and_keeps_the_last_checkpoint(
    whole: SimpleNamespace, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        run(tmp_path, make_plan(nan_at=9))
    line = str(error.value)
    assert "\n" not in line
    assert re.search(r"train_loss is nan in epoch 2: .*step 8 is kept", line)
    assert saved_steps(tmp_path) == [4, 8]
    assert rows(tmp_path) == b"".join(whole.rows.splitlines(keepends=True)[:2])
    state, complete = run(tmp_path, make_plan())
    assert complete and float(state.x) == whole.x


def test_divergence_before_any_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none was saved yet"):
        run(tmp_path, make_plan(nan_at=0))


def test_divergence_that_only_a_test_shows(tmp_path: Path) -> None:
    """The mean loss is that before the last step's update."""

    def end_epoch(run: Any, state: Any, epoch: int, means: Any) -> dict[str, float]:
        return {"test_loss": float("nan") if epoch == 2 else 1.0}

    plan = make_plan()._replace(end_epoch=end_epoch)
    with pytest.raises(UserError, match=r"test_loss is nan in epoch 2: .*step 8 is"):
        run(tmp_path, plan)
    assert len(rows(tmp_path).splitlines()) == 2


def test_a_run_without_its_checkpoints_says_that_it_begins_again(
    whole: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, make_plan())
    shutil.rmtree(tmp_path / "checkpoints")
    state, complete = run(tmp_path, make_plan())
    assert complete and float(state.x) == whole.x and rows(tmp_path) == whole.rows
    assert "no checkpoint in" in capsys.readouterr().err


def test_diverged_epoch_is_not_saved_on_a_signal(tmp_path: Path) -> None:
    """It would push the last good checkpoint out."""
    with pytest.raises(UserError, match="step 4 is kept"):
        run(tmp_path, make_plan(nan_at=4), Stop(STEPS + 2), keep_checkpoints=1)
    assert saved_steps(tmp_path) == [4]


def test_alphas_of_which_no_cell_can_be_derived(tmp_path: Path) -> None:
    """The last step's update may spoil them, behind the epoch's losses."""

    def end_epoch(run: Any, state: Any, epoch: int, means: Any) -> dict[str, float]:
        raise UserError("edge 0 has nan for none")

    with pytest.raises(UserError, match="edge 0 has nan for none"):
        run(tmp_path, make_plan()._replace(end_epoch=end_epoch))
    assert not (tmp_path / "metrics.jsonl").exists()
    assert not (tmp_path / "checkpoints").exists()


SEEDS = 3


def run_together(
    path: Path, stop: Stop, nan_at: int, lost: tuple[int, ...]
) -> tuple[loop.End, list[RunDirectory]]:
    """Three runs in one program, of which `lost` diverge in step `nan_at`."""
    fields = {"num_epochs": EPOCHS, "checkpoint_every": 2, "keep_checkpoints": 1}
    fields |= {"log_every_steps": 2, "progress": False, "tensorboard": False}

    def step(state: State, sums: Any, order: Any, data: None, count: Any) -> Any:
        number = int(state.step[0])
        state, sums = jax.vmap(one_step, (0, 0, None))(state, sums, order)
        spoilt = [np.nan if number == nan_at and i in lost else 1 for i in range(SEEDS)]
        return state, {"train_loss": sums["train_loss"] * jnp.float32(spoilt)}

    layout = Layout(one_device().mesh, SEEDS)
    plan = make_plan()._replace(step=step, layout=layout)
    start = State(jnp.zeros(SEEDS, jnp.int32), jnp.arange(SEEDS, dtype=jnp.float32))
    runs = [open_run(path / str(i), "search", fields, []) for i in range(SEEDS)]
    try:
        config = SimpleNamespace(**fields)
        return loop.run_epochs(plan, start, runs, config, stop)[1], runs
    finally:
        for its in runs:
            its.close()


def test_of_several_runs_those_that_have_not_diverged_are_saved(tmp_path: Path) -> None:
    end, runs = run_together(tmp_path, Stop(), STEPS + 1, lost=(1,))
    assert end == "diverged"
    assert [bool(its.diverged) for its in runs] == [False, True, False]
    for i, epochs in ((0, [0, 1]), (1, [0]), (2, [0, 1])):
        assert [row["epoch"] for row in runs[i].rows("metrics")] == epochs
        steps = checkpoints.saved_steps(tmp_path / str(i) / "checkpoints")
        assert steps == ([] if i == 1 else [2 * STEPS])
    with pytest.raises(
        UserError, match="^1: train_loss is nan in epoch 1: .*may help$"
    ):
        check_converged(runs)


@pytest.mark.parametrize(
    ("lost", "after", "wanted", "saved"),
    [
        ((1,), STEPS + 2, "stopped", []),  # within the epoch: it is trained again
        ((1,), 2 * STEPS - 1, "stopped", [2 * STEPS]),
        ((0, 1, 2), STEPS + 2, "diverged", []),
        ((0, 1, 2), 2 * STEPS - 1, "diverged", []),
    ],
)
def test_signal_in_an_epoch_in_which_runs_diverge(
    lost: tuple[int, ...], after: int, wanted: str, saved: list[int], tmp_path: Path
) -> None:
    end, runs = run_together(tmp_path, Stop(after), STEPS + 1, lost)
    assert end == wanted
    for i in range(SEEDS):
        steps = checkpoints.saved_steps(tmp_path / str(i) / "checkpoints")
        assert steps == ([] if i in lost else saved)
    if len(lost) == SEEDS:
        with pytest.raises(UserError, match="^0: .*; 1: .*; 2: train_loss is nan"):
            check_converged(runs)


def test_one_line_an_epoch_where_there_is_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, make_plan(), progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(", ")[0] for line in lines] == [
        f"retrain: step {STEPS * epoch}/{TOTAL}" for epoch in (1, 2, 3)
    ]
    assert re.search(r"epoch 3/3: train loss -?\d\.\d{3}$", lines[-1])


def test_tensorboard_has_the_rows(whole: SimpleNamespace, tmp_path: Path) -> None:
    run(tmp_path, make_plan(), tensorboard=True)
    assert rows(tmp_path) == whole.rows
    (file,) = (tmp_path / "tensorboard").iterdir()
    content = file.read_bytes()
    assert content.count(b"train_loss") == EPOCHS
    assert b"images_per_second" in content
