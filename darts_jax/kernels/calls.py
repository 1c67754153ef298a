"""One call of a C++ kernel from a JAX program."""

from typing import Any

import jax

from darts_jax.kernels.compiled import kernels


def call(symbol: str, results: Any, *operands: jax.Array, **attributes: Any) -> Any:
    """Calls the kernel `symbol` of compiled.SYMBOLS; not differentiable.

    Args:
        symbol: of the kernel.
        results: `jax.ShapeDtypeStruct` of each result.
        operands: its buffers in order.
        attributes: its constants: numpy values and arrays.
    """
    names = kernels()
    assert names is not None, "the caller asks for kernels() first"
    run = jax.ffi.ffi_call(names[symbol], results, vmap_method="sequential")
    return run(*operands, **attributes)
