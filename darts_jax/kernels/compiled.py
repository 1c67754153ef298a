"""Builds the C++ kernels once a machine and hands them to XLA.

A shared library is kept under a name that says all it depends on: its source, the compiler,
the processor's features and jaxlib. XLA knows the kernels by names with the same digest, so
that a cached program never runs another version of them. Each precision has a library of its
own, built when it is first asked for.
"""

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jaxlib

SOURCES = sorted(Path(__file__).parent.glob("*.cc"))
HEADERS = sorted(Path(__file__).parent.glob("*.h"))
SYMBOLS = (
    *("Forward", "InputGradient", "KernelGradient"),  # depthwise.cc
    *("DenseForward", "DenseKernelGradient"),  # dense.cc
    *("MaxPool", "Pick", "Place"),  # pool.cc
    *("MixedForward", "MixedBackward"),  # mixed.cc
    *("MixedForwardTangent", "MixedBackwardTangent"),  # mixed_tangent.cc
    *("Sums", "Moments"),  # norm.cc
    *("Pack", "Unpack"),  # packing.cc
)
PRECISIONS = {"float32": "float", "float64": "double"}  # and their types in C++
# -march=native: the library is for this machine only, its name says so.
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-w")
COMPILE_SECONDS = 300  # of a file; it takes 15; one that hangs must not stop a run


def directory() -> Path:
    """Returns the folder of built kernels: DARTS_JAX_CACHE or the user's cache folder."""
    if os.environ.get("DARTS_JAX_CACHE"):
        return Path(os.environ["DARTS_JAX_CACHE"]).expanduser() / "kernels"
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "darts_jax" / "kernels"


@functools.cache
def kernels(precision: str = "float32") -> dict[str, str] | None:
    """Returns XLA's name of each kernel of SYMBOLS, or None where they cannot be had.

    That is so without a C++ compiler, where building fails, and where the environment has
    DARTS_JAX_KERNELS=0.

    precision: of the numbers, a name in PRECISIONS.
    """
    return None if why_not(precision) else _registered(precision)


@functools.cache
def why_not(precision: str = "float32") -> str:
    """Returns in one line why there are no kernels here; empty where there are."""
    if os.environ.get("DARTS_JAX_KERNELS") == "0":
        return "turned off by DARTS_JAX_KERNELS=0"
    if _compiler() is None:
        return "no C++ compiler found (c++, g++ or clang++, or the one CXX names)"
    try:
        _library(precision)
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or "").strip().splitlines() or [
            f"status {error.returncode}"
        ]
        return f"{error.cmd[0]} failed: {lines[0]}"
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"not built: {error}"
    return ""


@functools.cache
def _compiler() -> str | None:
    named = os.environ.get("CXX")
    for name in [named] if named else ["c++", "g++", "clang++"]:
        if shutil.which(name):
            return name
    return None


@functools.cache
def _macros() -> str:
    """The predefined macros, which hold the compiler's version and what it compiles for."""
    compiler = _compiler()
    assert compiler is not None
    return subprocess.run(
        [compiler, "-march=native", "-dM", "-E", "-x", "c++", os.devnull],
        capture_output=True,
        check=True,
        text=True,
        timeout=COMPILE_SECONDS,
    ).stdout


def tuning(macros: str) -> tuple[str, ...]:
    """Returns the flags that correct what a compiler takes the processor for.

    A GCC older than an AMD processor with AVX-512 tunes for one without, and a search step
    takes 3 to 9 % longer (benchmarks/NOTES.md, "Tuning").

    macros: predefined with -march=native, a `#define` a line.
    """
    older = re.search(r"__tune_znver[123]__", macros) and "__AVX512F__" in macros
    return ("-mtune=icelake-server",) if older else ()


@functools.cache
def digest() -> str:
    """Returns what tells these libraries from all others: source, target, versions.

    Raises:
        subprocess.CalledProcessError: there is a compiler and it fails.
    """
    parts = [path.read_bytes() for path in (*SOURCES, *HEADERS)]
    told = (_macros(), *FLAGS, *tuning(_macros()), jaxlib.__version__)
    parts.append(" ".join(told).encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]


@functools.cache
def _library(precision: str) -> ctypes.CDLL:
    path = directory() / f"{precision}_{digest()}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # Another process may be building the same: the first complete file stays.
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            built = Path(folder) / path.name
            objects = [Path(folder) / f"{source.stem}.o" for source in SOURCES]
            compile_one = functools.partial(_compile, PRECISIONS[precision])
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(compile_one, SOURCES, objects))
            _run(*FLAGS, "-shared", *map(str, objects), "-o", str(built))
            os.replace(built, path)
    return ctypes.CDLL(str(path))


def _compile(number: str, source: Path, to: Path) -> None:
    flags = (*FLAGS, *tuning(_macros()), f"-DDARTS_JAX_NUMBER={number}")
    _run(*flags, f"-I{jax.ffi.include_dir()}", "-c", str(source), "-o", str(to))


def _run(*words: str) -> None:
    subprocess.run(
        [str(_compiler()), *words],
        capture_output=True,
        check=True,
        text=True,
        timeout=COMPILE_SECONDS,
    )


@functools.cache
def _registered(precision: str) -> dict[str, str]:
    names = {}
    for symbol in SYMBOLS:
        names[symbol] = f"darts_jax_{symbol}_{precision}_{digest()}"
        handler = jax.ffi.pycapsule(getattr(_library(precision), symbol))
        jax.ffi.register_ffi_target(names[symbol], handler, platform="cpu")
    return names
