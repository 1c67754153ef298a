"""The layers that operations are made of: convolutions, batch norm, pools, linear.

Activations are `[C, B, H, W]`, or `[n, C, B, H, W]` when n edges each have their own.
Parameters get their values in `initial.py`, not here, hence the zero initialisers.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from darts_jax.kernels.dense import native_dense
from darts_jax.kernels.pool import native_avg_pool, native_max_pool
from darts_jax.models import depthwise
from darts_jax.models.normalise import EPSILON, batch_norm, exact, wide

ZEROS, ONES = nn.initializers.zeros, nn.initializers.ones
KEPT = 0.9  # the share of a running statistic that one pass keeps


def running_average(running: Any, moments: Any) -> Any:
    """Returns the running statistics after a pass in training, a tree or a vector of all.

    `running = 0.9 * running + 0.1 * batch`, as in PyTorch; modules report the moments of their
    batch in the place of the running ones.
    """
    return jax.tree.map(lambda r, m: KEPT * r + (1 - KEPT) * m, running, moments)


def _as_computed(kernel: jax.Array, x: jax.Array) -> jax.Array:
    """Returns a float32 kernel in the activation's dtype, if that is a shorter one."""
    return kernel.astype(x.dtype) if x.dtype == jnp.bfloat16 else kernel


class DepthwiseConv(nn.Module):
    """Depthwise convolution, `[C, B, H, W]` or `[n, C, B, H, W]` to `[n, C, B, H', W']`."""

    edges: int
    kernel_size: int
    stride: int = 1
    dilation: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size, channels = self.kernel_size, x.shape[-4]
        kernel = self.param(
            "depthwise", ZEROS, (self.edges, size, size, channels), jnp.float32
        )
        return depthwise.depthwise_conv(
            x, _as_computed(kernel, x), stride=self.stride, dilation=self.dilation
        )


def _pointwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Returns `[n, C', B, H, W]` of x `[n, C, B, H, W]` and kernel `[n, C, C']`.

    Written as one batched product of two matrices: an einsum over the five axes computes the
    same, but XLA:CPU takes six times as long for its gradients.
    """
    flat = x.reshape(*x.shape[:2], -1)
    return (kernel.swapaxes(1, 2) @ flat).reshape(len(x), -1, *x.shape[2:])


class PointwiseConv(nn.Module):
    """1x1 convolution per edge, `[n, C, B, H, W]` to `[n, C', B, H, W]`."""

    channels: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (x.shape[0], x.shape[1], self.channels)
        kernel = self.param("pointwise", ZEROS, shape, jnp.float32)
        return _pointwise(x, _as_computed(kernel, x))


def conv_by_product(
    x: jax.Array, kernel: jax.Array, stride: tuple[int, int], padding: tuple[int, int]
) -> jax.Array:
    """Returns the dense convolution of x as one product of two matrices.

    For CPUs: within a loop XLA does not bring convolutions into the order of its fast ones
    (benchmarks/NOTES.md, "Both points of a finite difference by one program").

    Args:
        x: `[C, B, H, W]`.
        kernel: `[K, L, C, C']`.
        stride: along H and W, as the zero padding on both sides.
        padding: pixels.

    Returns:
        `[C', B, H', W']`.
    """
    window = kernel.shape[:2]
    (top, left), (down, right) = padding, stride
    x = jnp.pad(x, ((0, 0), (0, 0), (top, top), (left, left)))
    rows, columns = (
        (size - reached) // step + 1
        for size, reached, step in zip(x.shape[2:], window, stride, strict=True)
    )
    taps = [
        x[:, :, i : i + down * rows : down, j : j + right * columns : right]
        for i, j in np.ndindex(window)
    ]
    read = jnp.stack(taps).reshape(len(taps) * len(x), -1)
    y = kernel.reshape(len(read), -1).T @ read
    return y.reshape(-1, x.shape[1], rows, columns)


def stacked_conv(
    x: jax.Array, kernel: jax.Array, stride: tuple[int, int], padding: tuple[int, int]
) -> jax.Array:
    """Returns the dense convolutions of one source state by the kernels of n edges.

    They are one convolution with n * C' output channels.

    Args:
        x: `[C, B, H, W]`.
        kernel: `[n, K, L, C, C']`.
        stride: along H and W, as the zero padding on both sides.
        padding: pixels.

    Returns:
        `[n, C', B, H', W']`.
    """
    edges, *window, _, channels = kernel.shape
    if window == [1, 1] and padding == (0, 0):
        # A matrix product: XLA's own rewrite of 1x1 convolutions misses this layout.
        x = x[:, :, :: stride[0], :: stride[1]]
        merged = kernel[:, 0, 0].transpose(1, 0, 2).reshape(1, x.shape[0], -1)
        y = _pointwise(x[None], merged)[0]
        return y.reshape(edges, channels, *y.shape[1:])
    merged = kernel.transpose(1, 2, 3, 0, 4).reshape(*kernel.shape[1:4], -1)
    size = window[0]
    same = ([size, size], (1, 1), (size // 2, size // 2))
    if size % 2 and (window, stride, padding) == same and depthwise.native():
        y = native_dense(x, merged)
    elif stride != (1, 1) and depthwise.native():
        y = conv_by_product(x, merged, stride, padding)
    else:
        y = lax.conv_general_dilated(
            x,
            merged,
            window_strides=stride,
            padding=[(pad, pad) for pad in padding],
            dimension_numbers=("CNHW", "HWIO", "CNHW"),
        )
    return y.reshape(edges, channels, *y.shape[1:])


class Conv(nn.Module):
    """Dense convolution without bias, `[C, B, H, W]` to `[n, C', B, H', W']` for n edges."""

    channels: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    edges: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.edges, *self.kernel_size, x.shape[0], self.channels)
        kernel = _as_computed(self.param("conv", ZEROS, shape, jnp.float32), x)
        return stacked_conv(x, kernel, self.stride, self.padding)


def report_moments(module: nn.Module, mean: jax.Array, variance: jax.Array) -> None:
    """Puts a batch's mean and unbiased variance where the running ones were."""
    module.put_variable("batch_stats", "mean", mean)
    module.put_variable("batch_stats", "var", variance)


class Moments(nn.Module):
    """Reports the moments of a batch norm that were computed elsewhere."""

    @nn.compact
    def __call__(self, mean: jax.Array, variance: jax.Array) -> None:
        report_moments(self, mean, variance)


class BatchNorm(nn.Module):
    """Batch norm over batch and image axes, with PyTorch's rules (Ioffe and Szegedy 2015).

    Normalises with the biased batch variance; in training the unbiased one is reported for
    the running statistics (`running_average`). Input `[..., C, B, H, W]`. With `edges`, an
    input `[C, B, H, W]` that n edges share has running statistics of its own for every edge,
    as the reference has; in training the normalised value is the same for all of them, so it
    is computed once and returned as `[1, C, B, H, W]`. With `groups`, each of so many parts
    of the batch is normalised by its own moments, as on devices that do not synchronise
    ("ghost" batch norm, Hoffer et al. 2017); the running statistics take their means.
    Statistics are float32 whatever the activation's type.
    """

    affine: bool = True
    evaluation: str = "running"  # or "batch": batch statistics in evaluation too
    edges: int = 0
    groups: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        if self.edges:
            x = x[None]
        features = x.shape[:-3]
        stored = (self.edges, *features[1:]) if self.edges else features
        mean = self.variable("batch_stats", "mean", jnp.zeros, stored, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, stored, jnp.float32)
        dtype = exact(x.dtype)
        scale, bias = jnp.ones(features, dtype), jnp.zeros(features, dtype)
        if self.affine:
            scale = self.param("scale", ONES, features, jnp.float32).astype(dtype)
            bias = self.param("bias", ZEROS, features, jnp.float32).astype(dtype)
        if not train and self.evaluation == "running":
            factor = lax.rsqrt(var.value + EPSILON)
            y = (x - wide(mean.value)) * wide(factor * scale) + wide(bias)
            return y.astype(x.dtype)
        grouped = x.reshape(-1, *x.shape[-4:])
        scale, bias = (v.reshape(len(grouped), -1) for v in (scale, bias))
        groups = self.groups if train and not self.is_initializing() else 1
        y, batch_mean, batch_var = batch_norm(grouped, scale, bias, groups)
        if train and not self.is_initializing():
            # What follows is then traced without its derivatives.
            batch_mean, batch_var = lax.stop_gradient((batch_mean, batch_var))
            count = grouped[0, 0].size // groups
            batch_var *= count / max(count - 1, 1)
            moments = [m.reshape(features) for m in (batch_mean, batch_var)]
            report_moments(self, *(jnp.broadcast_to(m, stored) for m in moments))
        return y.reshape(x.shape)


class Linear(nn.Module):
    """`[B, C]` to `[B, classes]` with a bias."""

    num_outputs: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param(
            "linear", ZEROS, (x.shape[-1], self.num_outputs), jnp.float32
        )
        # The name tells initial.py the fan-in that PyTorch scales the bias by.
        bias = self.param(
            f"bias_of_{x.shape[-1]}", ZEROS, (self.num_outputs,), jnp.float32
        )
        return x @ kernel + bias


def _shifts(
    x: jax.Array, axis: int, size: int, stride: int, pad: int, fill: float
) -> list[jax.Array]:
    """Returns the `size` strided views of `x` that a window sees along `axis`."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (pad, pad)
    padded = jnp.pad(x, widths, constant_values=fill)
    out = (x.shape[axis] + 2 * pad - size) // stride + 1
    return [
        lax.slice_in_dim(padded, tap, tap + (out - 1) * stride + 1, stride, axis)
        for tap in range(size)
    ]


def max_pool(x: jax.Array, *, stride: int) -> jax.Array:
    """3x3 max pool with padding 1, `[..., H, W]` to `[..., H', W']`.

    Of equal values the first in row-major order takes the gradient, as in PyTorch: columns
    are compared first, then rows, and only a strictly greater value replaces the first. A
    NaN is the largest.
    """
    if depthwise.choice() == "native":
        return native_max_pool(x.astype(exact(x.dtype)), stride).astype(x.dtype)
    for axis in (-1, -2):
        views = _shifts(x, x.ndim + axis, 3, stride, 1, -jnp.inf)
        x = views[0]
        for view in views[1:]:
            x = jnp.where((view > x) | jnp.isnan(view), view, x)
    return x


def avg_pool(
    x: jax.Array, *, size: int = 3, stride: int = 1, pad: int = 1
) -> jax.Array:
    """Average pool, `[..., H, W]` to `[..., H', W']`; padding is left out of the count."""
    if depthwise.choice() == "native" and (size, pad, x.ndim) == (3, 1, 4):
        return native_avg_pool(x.astype(exact(x.dtype)), stride).astype(x.dtype)
    counts = []
    for axis in (-1, -2):
        length = x.shape[axis]
        views = _shifts(x, x.ndim + axis, size, stride, pad, 0.0)
        x = functools.reduce(jnp.add, views)
        starts = np.arange(x.shape[axis]) * stride - pad
        counts.append(
            np.minimum(starts + size, length) - np.maximum(starts, 0)  # taps inside
        )
    return x * jnp.asarray(1.0 / np.outer(counts[1], counts[0]), x.dtype)
