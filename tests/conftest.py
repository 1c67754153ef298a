"""What tests share: the CPU, a compilation cache, the optional data beside us."""

import os
from pathlib import Path

import pytest

# Environment variables, set before jax is imported, so that children inherit them.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        / "darts_jax"
        / "xla"
    ),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared(repository: Path) -> Path:
    """The folder of reference data, `<shared>/data`; without it the test is skipped."""
    root = Path(os.environ.get("DARTS_JAX_SHARED") or repository.parent / "shared")
    data = root / "data"
    if not data.is_dir():
        pytest.skip(f"no reference data: {data} is missing (set DARTS_JAX_SHARED)")
    return data
