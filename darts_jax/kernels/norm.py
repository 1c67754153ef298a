"""What a batch norm needs of its input and of its gradient, by our C++ kernels (norm.cc).

The functions here are not differentiable by JAX; `models/normalise.py` builds a derivative
of them.
"""

import jax

from darts_jax.kernels.calls import call


def channel_sums(gradient: jax.Array, z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the sums of gradient * z and of the gradient over batch and image.

    Both operands are `[n, C, B, H, W]`, the sums `[n, C]`.
    """
    result = jax.ShapeDtypeStruct(gradient.shape[:2], z.dtype)
    products, sums = call("Sums", (result, result), gradient, z)
    return products, sums


def channel_moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns mean and biased variance over batch and image, `[n, C]` of `[n, C, B, H, W]`."""
    result = jax.ShapeDtypeStruct(x.shape[:2], x.dtype)
    mean, variance = call("Moments", (result, result), x)
    return mean, variance
