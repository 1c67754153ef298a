"""jax's persistent compilation cache: a second run of a supernet starts in seconds."""

import os
import sys
from pathlib import Path


def directory() -> Path:
    """Returns where compiled programs are kept.

    jax's own JAX_COMPILATION_CACHE_DIR goes first, then DARTS_JAX_CACHE, then the user's
    cache folder.
    """
    for name in ("JAX_COMPILATION_CACHE_DIR", "DARTS_JAX_CACHE"):
        if os.environ.get(name):
            return Path(os.environ[name]).expanduser()
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "darts_jax" / "xla"


def turn_on() -> None:
    """Turns the cache on, unless jax has been told of another one.

    By the environment: jax is not imported for it, and child processes inherit it. Small
    programs are kept too: a run has dozens, and reading one takes a tenth of compiling it.
    """
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(directory()))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    jax = sys.modules.get("jax")
    if jax is not None and jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(directory()))
