"""Our compiler flags: next to the user's, never against them, and known to this jaxlib."""

import os
import subprocess
import sys

import pytest

from darts_jax.commands import xla_flags

TRITON, SLICES = xla_flags.DEFAULTS


@pytest.mark.parametrize("given", ["", "--xla_force_host_platform_device_count=2"])
def test_added_to_the_users_flags(monkeypatch, given):
    monkeypatch.setenv("XLA_FLAGS", given)
    xla_flags.set_defaults()
    words = os.environ["XLA_FLAGS"].split()
    assert words == [f"--{TRITON}=false", f"--{SLICES}=false", *given.split()]


def test_the_users_value_stays(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", f"--{SLICES}=true")
    xla_flags.set_defaults()
    assert os.environ["XLA_FLAGS"].split() == [f"--{TRITON}=false", f"--{SLICES}=true"]


def test_jaxlib_knows_them(monkeypatch):
    """It ends a process at an unknown one."""
    monkeypatch.setenv("XLA_FLAGS", "")
    xla_flags.set_defaults()
    code = "import jax; print(jax.jit(lambda x: x + 1)(1))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "2\n", done.stderr
