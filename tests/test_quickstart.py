"""scripts/quickstart.sh around a stand-in for Python: two at a time, signals, failures."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

DEADLINE = 60  # seconds
Start = Callable[..., "subprocess.Popen[str]"]

# Writes a line when a command begins and when it ends, waits while a file "hold-NAME" is
# there, fails where there is a file "fail-NAME", ends with 143 on SIGTERM as a run does.
STAND_IN = """#!/usr/bin/env bash
[[ $1 != -c ]] || exec "$REAL_PYTHON" "$@"
command=$3 name=report
for word in "$@"; do
    case $word in --workdir=*) name=${word##*/} ;; esac
done
note() { echo "$1 $name" >> events; }
trap 'note stopped; exit 143' TERM
taskset -cp $$ > cores-$name 2> /dev/null
note begun
[[ $command == report ]] && echo "${*:4}" >> events
sleep 0.05
while [[ -e hold-$name ]]; do sleep 0.02; done
[[ ! -e fail-$name ]] || { echo "words of $name"; note failed; exit 3; }
note ended
"""

# A shell cannot trap a signal that it was started to ignore, as SIGINT is where the tests
# themselves run in the background.
HEARING = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execvp("bash", ["bash", *sys.argv[1:]])
"""


@pytest.fixture
def checkout(tmp_path: Path, repository: Path) -> Path:
    """A checkout with the scripts and a virtual environment of the stand-in."""
    shutil.copytree(repository / "scripts", tmp_path / "scripts")
    for name in ("setup.cfg", "pyproject.toml"):
        shutil.copy(repository / name, tmp_path)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(STAND_IN)
    python.chmod(0o755)
    checksums = "$(cksum < setup.cfg) $(cksum < pyproject.toml)"
    subprocess.run(
        ["bash", "-c", f'echo "$PWD {checksums}" > .venv/.darts-jax-run'],
        cwd=tmp_path,
        check=True,
    )
    return tmp_path


@pytest.fixture
def start(checkout: Path) -> Iterator[Start]:
    """Starts the script; whatever is left of it at the end is killed."""
    processes: list[subprocess.Popen[str]] = []
    environment = {k: v for k, v in os.environ.items() if k != "VIRTUAL_ENV"}
    environment["REAL_PYTHON"] = sys.executable
    environment["TMPDIR"] = str(checkout / "temporary")
    (checkout / "temporary").mkdir()

    def begin(*words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HEARING, "scripts/quickstart.sh", "--tiny", *words],
            cwd=checkout,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        processes.append(process)
        return process

    yield begin
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def events(checkout: Path) -> list[str]:
    path = checkout / "events"
    return path.read_text().splitlines() if path.exists() else []


def wait_for(checkout: Path, *wanted: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not set(wanted) <= set(events(checkout)):
        assert time.monotonic() < deadline, events(checkout)
        time.sleep(0.01)


def test_search_first_and_two_at_a_time(checkout: Path, start: Start) -> None:
    process = start("4")
    _, err = process.communicate(timeout=DEADLINE)
    assert (process.returncode, err) == (0, "")
    found = events(checkout)
    names = ["search", "derived", *(f"random-{i}" for i in range(1, 5))]
    assert sorted(e for e in found if e.startswith("ended")) == sorted(
        f"ended {name}" for name in (*names, "report")
    )
    assert found.index("ended search") < found.index("begun derived")
    folders = " ".join(f"runs/quickstart-tiny/{name}" for name in names)
    assert found[-2:] == [
        f"--output=runs/quickstart-tiny/report.html {folders}",
        "ended report",
    ]
    running = 0
    for event in found[:-3]:
        running += 1 if event.startswith("begun") else -1
        assert running <= 2
    assert not any((checkout / "temporary").iterdir())


def test_lane_that_is_free_takes_the_next_random_cell(
    checkout: Path, start: Start
) -> None:
    (checkout / "hold-random-1").touch()
    process = start("3")
    wait_for(checkout, "ended derived", "ended random-2", "ended random-3")
    (checkout / "hold-random-1").unlink()
    assert process.wait(timeout=DEADLINE) == 0
    found = events(checkout)
    assert found.index("ended random-3") < found.index("ended random-1")


@pytest.mark.skipif(shutil.which("taskset") is None, reason="no taskset")
@pytest.mark.parametrize("randoms", [0, 1, 2])
def test_two_lanes_share_no_core(checkout: Path, start: Start, randoms: int) -> None:
    """Where there is one core, or one lane has nothing to do, both use all cores."""
    assert start(str(randoms)).wait(timeout=DEADLINE) == 0
    names = ["search", *(f"random-{i}" for i in range(1, min(randoms, 1) + 1))]
    found = [
        (checkout / f"cores-{name}").read_text().rpartition(":")[2].strip()
        for name in names
    ]
    whole = (checkout / "cores-report").read_text().rpartition(":")[2].strip()
    assert whole
    if randoms > 1 and len(os.sched_getaffinity(0)) > 1:
        assert len({*found, whole}) == 3
    else:
        assert set(found) == {whole}


@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)]
)
def test_signal_stops_both_lanes(
    checkout: Path, start: Start, signum: int, status: int
) -> None:
    (checkout / "hold-search").touch()
    (checkout / "hold-random-1").touch()
    process = start()
    wait_for(checkout, "begun search", "begun random-1")
    process.send_signal(signum)
    assert process.wait(timeout=DEADLINE) == status
    assert sorted(events(checkout)[2:]) == ["stopped random-1", "stopped search"]
    assert not any((checkout / "temporary").iterdir())


def test_failed_search_stops_the_other_lane(checkout: Path, start: Start) -> None:
    (checkout / "fail-search").touch()
    (checkout / "hold-random-1").touch()
    process = start()
    assert process.wait(timeout=DEADLINE) == 3
    found = events(checkout)
    assert "stopped random-1" in found and "begun derived" not in found


@pytest.mark.parametrize("name", ["derived", "random-2"])
def test_failed_retraining_shows_its_log(
    checkout: Path, start: Start, name: str
) -> None:
    (checkout / f"fail-{name}").touch()
    process = start()
    _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 3
    assert f"words of {name}" in err and f"retraining {name} failed" in err
    assert "begun report" not in events(checkout)


def test_number_that_is_none_is_refused(checkout: Path, start: Start) -> None:
    process = start("some")
    _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 2
    assert "not 'some'" in err and events(checkout) == []
