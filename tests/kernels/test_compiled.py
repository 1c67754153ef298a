"""Building the kernels: kept under a name of what they depend on, done without where not."""

import os
import platform
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
    assert library.name == f"float32_{compiled.digest()}.so"  # float64: when asked for
    before = library.stat().st_mtime_ns
    assert _asked(tmp_path, CXX=compiled._compiler() or "") == "native |"
    assert library.stat().st_mtime_ns == before


# AVX2 and SSE2; the machine's own is what every other test runs.
@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="names processors of x86-64")
@pytest.mark.parametrize("processor", ["x86-64-v3", "x86-64"])
@needs_kernels
def test_processors_with_shorter_vectors(processor: str, tmp_path: Path) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text(
        "#!/usr/bin/env bash\n"
        f'exec {compiled._compiler()} "${{@/-march=native/-march={processor}}}"\n'
    )
    compiler.chmod(0o755)
    environment = {"CXX": str(compiler), "DARTS_JAX_CACHE": str(tmp_path)}
    assert _asked(tmp_path, **environment) == "native |"
    tests = Path(__file__).parents[1]
    run = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "--quiet", "--numprocesses", "0"),
            *("-p", "no:cacheprovider", "-k", "precision or dense or not mixed"),
            *(tests / "models" / "test_fused.py", tests / "kernels" / "test_native.py"),
        ],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout
    assert "passed" in run.stdout


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
    found = set()
    for precision in compiled.PRECISIONS:
        names = kernels(precision)
        assert names is not None
        assert sorted(names) == sorted(SYMBOLS)
        assert all(name.endswith(compiled.digest()) for name in names.values())
        found |= set(names.values())
    assert len(found) == len(compiled.PRECISIONS) * len(SYMBOLS)


def test_tuning_of_a_compiler_older_than_the_processor() -> None:
    older = "#define __AVX512F__ 1\n#define __tune_znver3__ 1\n"
    assert compiled.tuning(older) == ("-mtune=icelake-server",)
    for known in (
        older.replace("znver3", "znver4"),
        older.replace("znver3", "sapphirerapids"),
        older.replace("AVX512F", "AVX2"),  # Zen 3 itself
        "#define __aarch64__ 1\n",
        "",
    ):
        assert compiled.tuning(known) == ()
