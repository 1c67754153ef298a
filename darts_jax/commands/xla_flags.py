"""Compiler flags that a run needs; they are read once, before JAX's first computation."""

import os

# Of GPUs alone; CPUs and TPUs ignore them.
DEFAULTS = {
    # XLA aborts the process on the supernet's matrix products otherwise: "Check failed:
    # subdim_size_accumulator == dim_size" in triton_tiling_propagation.cc, seen with jax 0.11.2
    # on an H100. Their cuBLAS versions are used instead.
    "xla_gpu_enable_triton_gemm": "false",
    # XLA gives cuBLAS a slice where it lies otherwise, with an algorithm that was chosen for
    # aligned operands: kernels of DARTS_V2 begin at a multiple of 4 bytes in the vector of all
    # weights (models/packing.py), and the first retraining step in bfloat16 ended with
    # "cublasLtMatmul: the requested functionality is not supported" (as above).
    "xla_gpu_enable_dynamic_slice_fusion": "false",
}


def set_defaults() -> None:
    """Adds our flags to XLA_FLAGS, except those that the user has set there."""
    given = os.environ.get("XLA_FLAGS", "")
    ours = [
        f"--{name}={value}" for name, value in DEFAULTS.items() if name not in given
    ]
    os.environ["XLA_FLAGS"] = " ".join([*ours, given]).strip()
