"""Batch norm in training as a function with a derivative of its own.

JAX's gradient of a batch norm reads its input five times and stores a centred copy. This one
takes the moments in one pass and both sums of the gradient in another (kernels/norm.py),
where our kernels are there; the oracle is `plain_batch_norm`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from darts_jax.errors import UserError
from darts_jax.kernels.norm import channel_moments, channel_sums
from darts_jax.kernels.substitute import substitute, with_jvp
from darts_jax.models.depthwise import native

EPSILON = 1e-5


def wide(per_channel: jax.Array) -> jax.Array:
    """`[..., C]` to `[..., C, 1, 1, 1]`."""
    return per_channel[..., None, None, None]


def exact(dtype: Any) -> Any:
    """Returns the dtype of moments, means and logits: float32 at least."""
    return jnp.promote_types(dtype, jnp.float32)


def through_norm(
    mean: jax.Array,
    variance: jax.Array,
    count: int,
    products: jax.Array,
    sums: jax.Array,
    weight: jax.Array | float,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Returns how a gradient passes `weight` times a batch norm (Ioffe and Szegedy 2015).

    Args:
        mean: `[n, C]` or `[1, C]`, of the norm's input z, as variance.
        variance: biased.
        count: how many numbers a channel has.
        products: `[n, C]`, the sums of gradient * z.
        sums: `[n, C]`, the sums of the gradient.
        weight: what the normalised value is multiplied by; broadcasts to `[n, C]`.

    Returns:
        (a, alpha, beta) with dz = a * gradient + alpha + beta * z, and the sums of gradient
        times normalised z, which are the weight's gradient; `[n, C]` each.
    """
    scale = lax.rsqrt(variance + EPSILON)
    projected = scale * (products - mean * sums)
    beta = -weight * scale**2 * projected / count
    alpha = -weight * scale * sums / count - beta * mean
    return weight * scale * jnp.ones_like(sums), alpha, beta, projected


def batch_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, groups: int = 1
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalises with the batch's own moments.

    Args:
        x: `[n, C, B, H, W]`.
        scale: `[n, C]`, as bias; of the dtype `exact(x.dtype)`.
        bias: added to what is normalised and scaled.
        groups: contiguous parts of the batch, each normalised with moments of its own.

    Returns:
        The result, of x's shape and dtype, and mean and biased variance `[n, C]`, each the
        mean over the groups, through which no gradient may flow where the kernels are used:
        they are for running statistics.

    Raises:
        UserError: the batch does not divide among the groups.
    """
    if x.dtype not in (jnp.float32, jnp.float64):
        function = _short_batch_norm
    else:
        function = _batch_norm if native() else plain_batch_norm
    if groups == 1:
        return function(x, scale, bias)
    edges, channels, batch, *image = x.shape
    if batch % groups:
        raise UserError(
            f"config.batch_norm.groups={groups} does not divide a batch of {batch}; choose "
            f"one of {[n for n in range(1, batch + 1) if batch % n == 0]}"
        )
    part = (batch // groups, *image)
    if function is _batch_norm:  # for the kernels a group is one more channel
        parts = x.reshape(edges, channels * groups, *part)
        scale, bias = (jnp.repeat(values, groups, 1) for values in (scale, bias))
    else:  # an axis of its own: a batch split among as many devices stays where it is
        parts = x.reshape(edges, channels, groups, *part)
        scale, bias = scale[..., None], bias[..., None]
    y, *moments = function(parts, scale, bias)
    mean, variance = (m.reshape(edges, channels, groups).mean(-1) for m in moments)
    return y.reshape(x.shape), mean, variance


def plain_batch_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`batch_norm` by differentiable operations; further axes may stand before B."""
    values = x.astype(exact(x.dtype))
    mean = values.mean((-3, -2, -1), keepdims=True)
    centred = values - mean
    variance = jnp.square(centred).mean((-3, -2, -1), keepdims=True)
    y = centred * lax.rsqrt(variance + EPSILON) * wide(scale) + wide(bias)
    return y.astype(x.dtype), mean[..., 0, 0, 0], variance[..., 0, 0, 0]


# Of bfloat16 values: the gradient computes again what is float32 and as large as they are,
# and keeps the values themselves and the sums (the moments) only.
_short_batch_norm = jax.checkpoint(
    plain_batch_norm, policy=lambda primitive, *_, **__: primitive.name == "reduce_sum"
)


def weighted(weight: jax.Array, y: jax.Array) -> jax.Array:
    """Returns weight times y in y's dtype, computed in float32 at least.

    A weight's gradient is a sum over all of y, which bfloat16 cannot take: it stops growing
    at 256 times its terms.

    Args:
        weight: `[n, 1]`, the edge weights of one primitive.
        y: `[n, C, B, H, W]`, or `[1, C, B, H, W]` for a value that the edges share.
    """
    if y.dtype in (jnp.float32, jnp.float64):
        return wide(weight) * y
    return _short_weighted(weight, y)


@jax.checkpoint  # keeps y for the gradient, not its float32 copy
def _short_weighted(weight: jax.Array, y: jax.Array) -> jax.Array:
    return (wide(weight) * y.astype(exact(y.dtype))).astype(y.dtype)


def _batch_norm_by_kernel(x: jax.Array, scale: jax.Array, bias: jax.Array) -> Any:
    mean, variance = channel_moments(x)
    factor = lax.rsqrt(variance + EPSILON) * scale
    return (x - wide(mean)) * wide(factor) + wide(bias), mean, variance


def _batch_norm_jvp(primals: Any, tangents: Any) -> Any:
    x, scale, _ = primals
    y, mean, variance = _batch_norm(*primals)
    changes = _tangent(x, scale, mean, variance, *tangents)
    return (y, mean, variance), tuple(changes)


_batch_norm = with_jvp("batch_norm", _batch_norm_by_kernel, _batch_norm_jvp)


def _plain_tangent(
    x: jax.Array, scale: jax.Array, mean: jax.Array, variance: jax.Array, *tangents: Any
) -> Any:
    primals = (x, scale, jnp.zeros_like(scale))
    return list(jax.jvp(plain_batch_norm, primals, tangents)[1])


def _transposed(cotangents: Any, undefined: list[bool], *arrays: Any) -> list[Any]:
    """Returns the gradients in the place of the tangents: what reverse mode runs."""
    return [None] * 4 + list(_backward(*arrays[:4], cotangents[0]))


_tangent = substitute("batch_norm_tangent", _plain_tangent, _plain_tangent, _transposed)


def _backward_by_kernel(
    x: jax.Array,
    scale: jax.Array,
    mean: jax.Array,
    variance: jax.Array,
    gradient: jax.Array,
) -> Any:
    products, sums = channel_sums(gradient, x)
    count = x[0, 0].size
    a, alpha, beta, projected = through_norm(
        mean, variance, count, products, sums, scale
    )
    return wide(a) * gradient + wide(alpha) + wide(beta) * x, projected, sums


def _backward_jvp(primals: Any, tangents: Any) -> Any:
    def plain(x: Any, scale: Any, gradient: Any) -> Any:
        def norm(x: Any, scale: Any, bias: Any) -> Any:
            return plain_batch_norm(x, scale, bias)[0]

        _, transpose = jax.vjp(norm, x, scale, jnp.zeros_like(scale))
        return transpose(gradient)

    # The moments are functions of x: their tangents are in that of x.
    x, scale, _, _, gradient = primals
    dx, dscale, _, _, dgradient = tangents
    _, tangent = jax.jvp(plain, (x, scale, gradient), (dx, dscale, dgradient))
    return _backward(*primals), tangent


_backward = with_jvp("batch_norm_backward", _backward_by_kernel, _backward_jvp)
