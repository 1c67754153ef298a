"""Compiler flags that a run needs; they are read once, before JAX's first computation."""

import os

# XLA aborts the process on the supernet's matrix products otherwise: "Check failed:
# subdim_size_accumulator == dim_size" in triton_tiling_propagation.cc, seen with jax 0.11.2 on
# an H100. Their cuBLAS versions are used instead. CPUs and TPUs ignore the flag.
DEFAULTS = {"xla_gpu_enable_triton_gemm": "false"}


def set_defaults() -> None:
    """Adds our flags to XLA_FLAGS, except those that the user has set there."""
    given = os.environ.get("XLA_FLAGS", "")
    ours = [
        f"--{name}={value}" for name, value in DEFAULTS.items() if name not in given
    ]
    os.environ["XLA_FLAGS"] = " ".join([*ours, given]).strip()
