"""Keeps the memory of one training step for the next one.

A step's temporary arrays are one allocation of hundreds of megabytes. glibc gives it back to
the system after every step, which then has to clear as many pages again: a tenth to a fifth
of a step (benchmarks/NOTES.md).
"""

import ctypes

import jax

# mallopt's parameters, from <malloc.h>.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_NEVER = -1  # the largest number would be 2 GiB, and the paper's batch takes more


def keep_freed_memory() -> bool:
    """Tells glibc to keep freed memory; returns whether it could be told.

    For a process that trains, before JAX makes its devices: computations on CPUs then run
    where they are asked for. In JAX's own threads a step's arrays are too large for the heap
    that glibc gives a thread, and come from the system every time. (One heap for all threads
    would do too, but the compiler's threads wait for each other there.)
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER))
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)


def return_freed_memory() -> None:
    """Gives back what is free now: after compilation, which needs more than a step."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
