"""Freed memory stays in the process: a second large array costs no new pages."""

import subprocess
import sys

from darts_jax.kernels.allocator import keep_freed_memory

CODE = """
import resource, sys
import numpy as np
from darts_jax.kernels.allocator import keep_freed_memory, return_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(64 * 2**20, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

assert keep_freed_memory()
first, second = faults(), faults()
return_freed_memory()
print(first, second, faults())
"""


def test_a_second_array_has_the_first_ones_pages() -> None:
    run = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, check=False
    )
    if not keep_freed_memory():  # another C library
        assert "AssertionError" in run.stderr
        return
    assert run.returncode == 0, run.stderr
    first, second, third = map(int, run.stdout.split())
    assert second < first / 10
    assert third > 10 * second


def test_commands_ask_before_jax_has_threads() -> None:
    # A thread that began earlier keeps a heap of its own, and a step's arrays their faults.
    code = """
import sys
from darts_jax import __main__ as program
program.allocator.keep_freed_memory = lambda: print("jax" in sys.modules)
program.main(["zoo", "DARTS_V2"])
"""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert run.stdout.splitlines()[0] == "False"
