"""scripts/quickstart.sh around a stand-in for Python: two at a time, signals, failures."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

DEADLINE = 60  # seconds

# Writes a line when a command begins and when it ends, waits while a file "hold-NAME" is
# there, fails where there is a file "fail-NAME", ends with 143 on SIGTERM as a run does.
STAND_IN = """#!/usr/bin/env bash
command=$3 name=report
for word in "$@"; do
    case $word in --workdir=*) name=${word##*/} ;; esac
done
note() { echo "$1 $name" >> events; }
trap 'note stopped; exit 143' TERM
note begun
[[ $command == report ]] && echo "${*:4}" >> events
sleep 0.05
while [[ -e hold-$name ]]; do sleep 0.02; done
[[ ! -e fail-$name ]] || { echo "words of $name"; note failed; exit 3; }
note ended
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


def start(checkout: Path, *words: str) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if k != "VIRTUAL_ENV"}
    environment["TMPDIR"] = str(checkout / "temporary")
    (checkout / "temporary").mkdir()
    return subprocess.Popen(
        ["bash", "scripts/quickstart.sh", "--tiny", *words],
        cwd=checkout,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def events(checkout: Path) -> list[str]:
    path = checkout / "events"
    return path.read_text().splitlines() if path.exists() else []


def wait_for(checkout: Path, *wanted: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not set(wanted) <= set(events(checkout)):
        assert time.monotonic() < deadline, events(checkout)
        time.sleep(0.01)


def test_search_first_and_two_at_a_time(checkout: Path) -> None:
    process = start(checkout, "4")
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


def test_lane_that_is_free_takes_the_next_random_cell(checkout: Path) -> None:
    (checkout / "hold-random-1").touch()
    process = start(checkout, "3")
    wait_for(checkout, "ended derived", "ended random-2", "ended random-3")
    (checkout / "hold-random-1").unlink()
    assert process.wait(timeout=DEADLINE) == 0
    found = events(checkout)
    assert found.index("ended random-3") < found.index("ended random-1")


@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)]
)
def test_signal_stops_both_lanes(checkout: Path, signum: int, status: int) -> None:
    (checkout / "hold-search").touch()
    (checkout / "hold-random-1").touch()
    process = start(checkout)
    wait_for(checkout, "begun search", "begun random-1")
    process.send_signal(signum)
    assert process.wait(timeout=DEADLINE) == status
    assert sorted(events(checkout)[2:]) == ["stopped random-1", "stopped search"]
    assert not any((checkout / "temporary").iterdir())


def test_failed_search_stops_the_other_lane(checkout: Path) -> None:
    (checkout / "fail-search").touch()
    (checkout / "hold-random-1").touch()
    process = start(checkout)
    assert process.wait(timeout=DEADLINE) == 3
    found = events(checkout)
    assert "stopped random-1" in found and "begun derived" not in found


@pytest.mark.parametrize("name", ["derived", "random-2"])
def test_failed_retraining_shows_its_log(checkout: Path, name: str) -> None:
    (checkout / f"fail-{name}").touch()
    process = start(checkout)
    _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 3
    assert f"words of {name}" in err and f"retraining {name} failed" in err
    assert "begun report" not in events(checkout)


def test_number_that_is_none_is_refused(checkout: Path) -> None:
    process = start(checkout, "some")
    _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 2
    assert "not 'some'" in err and events(checkout) == []
