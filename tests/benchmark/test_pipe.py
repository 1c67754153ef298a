"""Workers answer on a pipe, end with their parent's context, and say why they died."""

import mmap
import os
import signal
import sys
from pathlib import Path

import pytest

from darts_jax.benchmark import memory
from darts_jax.benchmark.measure import environment
from darts_jax.benchmark.pipe import WorkerError, started

PROGRAM = """
import os, sys
from darts_jax.benchmark import pipe

def double(x):
    print("noise")
    os.write(1, b"more noise\\n")
    return {"x": 2 * x}

def die(how):
    print("last words", file=sys.stderr, flush=True)
    os.kill(os.getpid(), how) if how else sys.exit(3)

pipe.serve({"double": double, "die": die})
"""
COMMAND = (sys.executable, "-c", PROGRAM)


def test_a_worker_answers_and_its_prints_do_not_mix() -> None:
    with started(COMMAND, environment()) as worker:
        assert worker.ask("double", x=2) == {"x": 4}
        assert worker.ask("double", x=[1]) == {"x": [1, 1]}


def test_two_workers_take_turns() -> None:
    with started(COMMAND, environment()) as a, started(COMMAND, environment()) as b:
        assert [w.ask("double", x=i)["x"] for i in (1, 2) for w in (a, b)] == [
            *(2, 2, 4, 4)
        ]


@pytest.mark.parametrize(
    ("how", "words"),
    [(0, "status 3"), (int(signal.SIGKILL), r"signal 9 \(out of memory\?\)")],
)
def test_a_worker_that_dies_tells_how(how: int, words: str) -> None:
    with (
        pytest.raises(WorkerError, match=rf"ended with {words}\nlast words"),
        started(COMMAND, environment()) as worker,
    ):
        worker.ask("die", how=how)


def test_a_dead_worker_cannot_be_asked() -> None:
    with started(COMMAND, environment()) as worker:
        for _ in range(2):
            with pytest.raises(WorkerError, match="last words"):
                worker.ask("die", how=0)


def test_a_fault_of_a_handler_is_shown() -> None:
    with (
        pytest.raises(WorkerError, match="TypeError"),
        started(COMMAND, environment()) as worker,
    ):
        worker.ask("double", y=1)


def test_the_context_ends_the_worker() -> None:
    with started(COMMAND, environment()) as worker:
        assert worker.process.poll() is None
    assert worker.process.returncode == -signal.SIGKILL


def test_the_environment_has_our_caches_and_package(tmp_path: Path) -> None:
    found = environment(str(tmp_path))
    assert found["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path)
    assert found["DARTS_JAX_CACHE"] == str(tmp_path)
    root = Path(found["PYTHONPATH"].split(os.pathsep)[0])
    assert (root / "darts_jax" / "__init__.py").is_file()


@pytest.mark.skipif(not memory.CLEAR.exists(), reason="no /proc/self/clear_refs here")
def test_the_peak_can_be_reset() -> None:
    number = 64 * 2**20
    if not memory.reset_peak():
        pytest.skip("the system does not let the peak be reset")
    before = memory.peak_bytes()
    # Pages of its own: the heap may hold free ones that are resident already.
    with mmap.mmap(-1, number) as held:
        held[:: mmap.PAGESIZE] = b"x" * (number // mmap.PAGESIZE)
        assert memory.peak_bytes() - before > 0.9 * number
    assert memory.reset_peak()
    assert memory.peak_bytes() - before < 0.5 * number
    resident = memory.resident_bytes()
    assert resident is not None and resident <= memory.peak_bytes()
