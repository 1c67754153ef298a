"""What a run ran on: versions, source commit, devices, machine."""

import datetime
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import darts_jax
from darts_jax.kernels import compiled

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def describe(command: str, argv: Sequence[str], seed: int) -> dict[str, Any]:
    """Returns the manifest of a run that starts now."""
    return {
        "command": command,
        "argv": list(argv),
        "seed": seed,
        "started": now(),
        "restarts": [],
        **surroundings(),
    }


def describe_restart(argv: Sequence[str]) -> dict[str, Any]:
    """Returns what the manifest keeps of a restart: it may be on another machine."""
    return {"started": now(), "argv": list(argv), **surroundings()}


def surroundings() -> dict[str, Any]:
    """Returns the versions, source commit, devices and machine of this process."""
    import jax

    return {
        "darts_jax": darts_jax.__version__,
        **source_commit(),
        "versions": versions(),
        "backend": jax.default_backend(),
        "devices": [f"{device} ({device.device_kind})" for device in jax.devices()],
        "processes": jax.process_count(),
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "cores": available_cores(),
        "memory_bytes": memory_bytes(),
        "kernels": kernels(),
    }


def now() -> str:
    """Returns the time in UTC as ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def kernels() -> str | None:
    """Returns the digest of the kernels in use; without any sums have another order."""
    return None if compiled.why_not() else compiled.digest()


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "unknown"
    return found


def source_commit() -> dict[str, Any]:
    """Returns {"commit": hash or None, "dirty": bool} of the checkout we run from."""
    root = Path(darts_jax.__file__).resolve().parents[1]
    none = {"commit": None, "dirty": False}
    if not (root / ".git").exists():
        return none
    git = ["git", "-C", str(root)]
    try:
        commit = _output([*git, "rev-parse", "HEAD"])
        status = _output([*git, "status", "--porcelain", "--untracked-files=no"])
    except (OSError, subprocess.SubprocessError):
        return none
    return {"commit": commit.strip() or None, "dirty": bool(status.strip())}


def _output(command: list[str]) -> str:
    return subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=10
    ).stdout


def cpu_model() -> str:
    """Returns the processor's name, as well as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def available_cores() -> int:
    """Returns how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int:
    """Returns the machine's memory in bytes, 0 where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return 0
