"""Keeps each of XLA's worker threads to a core of its own.

A step is thousands of short parallel loops, and between them the threads sleep. Now and then
only one of two was at work for seconds, and a step took up to twice as long; bound threads did
better (benchmarks/NOTES.md, which says what is not explained).
"""

import os
from pathlib import Path

_POOL = "tf_XLAEigen"  # the name that XLA:CPU gives the threads of its pool
_TASKS = Path("/proc/self/task")


def spread_threads() -> int:
    """Binds XLA's threads to the cores that the process may use; returns how many it bound.

    For a process that trains on CPUs, after its first computation has started them. Nothing
    is done where there is no Linux, and where threads and cores are not equally many.
    """
    if not (hasattr(os, "sched_setaffinity") and _TASKS.is_dir()):
        return 0
    cores = sorted(os.sched_getaffinity(0))
    threads = sorted(int(task.name) for task in _TASKS.iterdir() if _in_pool(task))
    if len(threads) != len(cores):
        return 0
    try:
        for thread, core in zip(threads, cores, strict=True):
            os.sched_setaffinity(thread, {core})
    except OSError:  # a thread that ended, or a system that forbids it
        return 0
    return len(threads)


def _in_pool(task: Path) -> bool:
    try:
        return (task / "comm").read_text().strip() == _POOL
    except OSError:
        return False
