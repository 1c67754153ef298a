"""Building the kernels: kept under a name of what they depend on, done without where not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from darts_jax.kernels import compiled
from darts_jax.kernels.compiled import SYMBOLS, kernels, why_not

needs_kernels = pytest.mark.skipif(kernels() is None, reason=f"no kernels: {why_not()}")


def _asked(folder: Path, **environment: str) -> str:
    """What a process of its own says of the kernels, and how it convolves."""
    code = (
        "from darts_jax.kernels.compiled import why_not\n"
        "from darts_jax.models.depthwise import choice\n"
        "print(choice(), '|', why_not())"
    )
    environment = {**os.environ, "DARTS_JAX_CACHE": str(folder), **environment}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


@needs_kernels
def test_built_once_and_found_again(tmp_path: Path) -> None:
    assert _asked(tmp_path) == "native |"
    (library,) = (tmp_path / "kernels").iterdir()
    assert library.name == f"{compiled.digest()}.so"
    before = library.stat().st_mtime_ns
    assert _asked(tmp_path, CXX=compiled._compiler() or "") == "native |"
    assert library.stat().st_mtime_ns == before


def test_done_without_where_they_cannot_be_built(tmp_path: Path) -> None:
    assert _asked(tmp_path, CXX="no-such-compiler").startswith(
        "banded | no C++ compiler"
    )
    assert _asked(tmp_path, CXX="false").startswith("banded | false failed: status 1")
    assert _asked(tmp_path, DARTS_JAX_KERNELS="0") == (
        "banded | turned off by DARTS_JAX_KERNELS=0"
    )
    file = tmp_path / "file"
    file.write_text("")
    if kernels() is not None:
        assert _asked(file).startswith("banded | not built: ")  # no folder can be there


@needs_kernels
def test_names_tell_versions_apart() -> None:
    names = kernels()
    assert names is not None
    assert sorted(names) == sorted(SYMBOLS)
    assert all(name.endswith(compiled.digest()) for name in names.values())
