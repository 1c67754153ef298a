"""One call of a C++ kernel from a JAX program."""

from typing import Any

import jax
import jax.numpy as jnp

from darts_jax.kernels.compiled import kernels, why_not


def call(symbol: str, results: Any, *operands: jax.Array, **attributes: Any) -> Any:
    """Calls the kernel `symbol` of compiled.SYMBOLS; not differentiable.

    Args:
        symbol: of the kernel.
        results: `jax.ShapeDtypeStruct` of each result.
        operands: its buffers in order, all floating-point ones of the precision that it
            computes in.
        attributes: its constants: numpy values and arrays.
    """
    precision = str(operands[0].dtype)
    types = {str(x.dtype) for x in operands if jnp.issubdtype(x.dtype, jnp.floating)}
    assert types == {precision}, f"{symbol} reads buffers of {types} as {precision}"
    names = kernels(precision)
    assert names is not None, f"the caller asks first: {why_not(precision)}"
    run = jax.ffi.ffi_call(names[symbol], results, vmap_method="sequential")
    return run(*operands, **attributes)
