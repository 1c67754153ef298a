"""XLA's threads keep to a core each, of those that the process may use."""

import os
import subprocess
import sys

import pytest

CODE = """
import os
import jax, jax.numpy as jnp
from darts_jax.kernels.threads import _in_pool, _TASKS, spread_threads

jax.block_until_ready(jnp.ones(8) + 1)
mine, bound = os.sched_getaffinity(0), spread_threads()
pool = [int(task.name) for task in _TASKS.iterdir() if _in_pool(task)]
print(len(mine), bound, sorted(tuple(os.sched_getaffinity(t)) for t in pool))
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux only")
def test_each_thread_has_a_core() -> None:
    run = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, check=True
    )
    cores, bound, where = run.stdout.split(" ", 2)
    if not int(bound):
        pytest.skip("threads and cores are not equally many here")
    assert int(bound) == int(cores)
    assert where.strip() == str([(core,) for core in sorted(os.sched_getaffinity(0))])
