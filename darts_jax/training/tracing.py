"""What makes a program's first call shorter: the time before it is compiled."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collection() -> Iterator[None]:
    """Pauses Python's cycle collector while a program is traced.

    Tracing makes hundreds of thousands of objects that live on, and the collector goes through
    all of them again and again: a tenth of the time (benchmarks/NOTES.md).
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
