"""Depthwise convolution, the operation that decides how fast a supernet is.

Activations are `[C, B, H, W]`: a depthwise convolution is then a product batched over the
leading channel axis, a pointwise convolution one matrix product `[C', C] x [C, BHW]`, and
batch norm a reduction over trailing axes. Grouped convolutions of XLA:CPU take minutes to
compile and seconds to run; there it is our own kernel, or, where that cannot be built,
banded matrix products, whose automatic gradients of every order are matrix products again.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from darts_jax.kernels.compiled import kernels
from darts_jax.kernels.depthwise import native_depthwise


@functools.cache
def band(
    offsets: tuple[int, ...], reads: tuple[int, ...], stride: int, outputs: int
) -> np.ndarray:
    """Returns the 0/1 basis `[O, S, R]` of banded matrices, along one axis of the image.

    Entry (o, s, r) says that the tap at `offsets[o]` pixels from output r's own reads pixel
    `reads[s]`: `reads[s] = r * stride + offsets[o]`. What is not in `reads` is padding.
    """
    sources = np.array(offsets)[:, None] + stride * np.arange(outputs)
    return (sources[:, None] == np.array(reads)[:, None]).astype(np.float32)


def reach(kernel_size: int, dilation: int) -> tuple[int, ...]:
    """Returns how far a kernel's taps stand from an output's own pixel, along one axis."""
    middle = (kernel_size - 1) // 2
    return tuple(dilation * (tap - middle) for tap in range(kernel_size))


def banded_depthwise(
    x: jax.Array, kernel: jax.Array, stride: int, dilation: int
) -> jax.Array:
    """Depthwise convolution as matrix products with banded matrices.

    Args:
        x: `[C, B, H, W]`.
        kernel: `[n, K, K, C]`, n kernels a channel.
        stride: of both image axes.
        dilation: of both image axes; padding keeps `H' = ceil(H / stride)`.

    Returns:
        `[n, C, B, H', W']`.
    """
    channels, batch, height, width = x.shape
    edges, size = kernel.shape[:2]
    out_height, out_width = -(-height // stride), -(-width // stride)
    offsets = reach(size, dilation)
    basis = band(offsets, tuple(range(width)), stride, out_width)
    columns = jnp.asarray(basis, x.dtype)
    if height <= 4 or (height <= 8 and edges == 1):
        # A small image is one row: a single [HW, H'W'] matrix a channel.
        basis = band(offsets, tuple(range(height)), stride, out_height)
        rows = jnp.asarray(basis, x.dtype)
        matrix = jnp.einsum("nijc,ihg,jwv->chwngv", kernel, rows, columns)
        matrix = matrix.reshape(channels, height * width, -1)
        y = jnp.matmul(x.reshape(channels, batch, height * width), matrix)
        y = y.reshape(channels, batch, edges, out_height, out_width)
        return y.transpose(2, 0, 1, 3, 4)
    matrix = jnp.einsum("nijc,jwv->ciwnv", kernel, columns)
    matrix = matrix.reshape(channels, size * width, edges * out_width)
    pad = dilation * (size - 1) // 2
    padded = jnp.pad(x, ((0, 0), (0, 0), (pad, pad), (0, 0)))
    span = (out_height - 1) * stride + 1
    shifted = [
        padded[:, :, tap * dilation : tap * dilation + span : stride]
        for tap in range(size)
    ]
    stacked = jnp.stack(shifted, 3).reshape(channels, batch * out_height, size * width)
    y = jnp.matmul(stacked, matrix)
    y = y.reshape(channels, batch, out_height, edges, out_width)
    return y.transpose(3, 0, 1, 2, 4)


def grouped_depthwise(
    x: jax.Array, kernel: jax.Array, stride: int, dilation: int
) -> jax.Array:
    """The same as `banded_depthwise` by the grouped convolution of the backend."""
    channels, batch = x.shape[:2]
    edges, size = kernel.shape[:2]
    pad = dilation * (size - 1) // 2
    y = lax.conv_general_dilated(
        x,
        # Output feature c * n + e belongs to group c.
        kernel.transpose(1, 2, 3, 0).reshape(size, size, 1, channels * edges),
        window_strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("CNHW", "HWIO", "CNHW"),
        feature_group_count=channels,
    )
    y = y.reshape(channels, edges, batch, *y.shape[2:])
    return y.transpose(1, 0, 2, 3, 4)


DEPTHWISE = {
    "banded": banded_depthwise,
    "grouped": grouped_depthwise,
    "native": native_depthwise,
}


def depthwise_conv(
    x: jax.Array, kernel: jax.Array, *, stride: int = 1, dilation: int = 1
) -> jax.Array:
    """Convolves every channel with its own kernel, for all edges that share it at once.

    Args:
        x: `[C, B, H, W]`, one source state for all n edges, or `[n, C, B, H, W]`, one each.
        kernel: `[n, K, K, C]`.
        stride: 1 or 2.
        dilation: 1 or 2; zero padding is `dilation * (K - 1) / 2` on every side.

    Returns:
        `[n, C, B, ceil(H / stride), ceil(W / stride)]`.
    """
    convolve = DEPTHWISE[choice()]
    if x.ndim == 4:
        return convolve(x, kernel, stride, dilation)
    edges, channels = x.shape[:2]
    merged = kernel.transpose(1, 2, 0, 3).reshape(1, *kernel.shape[1:3], -1)
    y = convolve(x.reshape(edges * channels, *x.shape[2:]), merged, stride, dilation)
    return y.reshape(edges, channels, *y.shape[2:])


def native() -> bool:
    """Whether our kernels can be used: a CPU, they are built, and there is one device.

    They are calls that the compiler cannot split among several.
    """
    if jax.default_backend() != "cpu" or jax.device_count() > 1:
        return False
    precisions = {"float32", str(jnp.result_type(float))}  # float64 too, if that is on
    return all(kernels(precision) is not None for precision in precisions)


def choice() -> str:
    """Returns the entry of DEPTHWISE that is fastest here: our kernels where there are any.

    On CPUs and, as measured on an H100, on GPUs banded products beat grouped convolutions.
    """
    return "native" if native() else "banded"
