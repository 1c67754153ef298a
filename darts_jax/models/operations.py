"""The primitives as modules: one source state in, one output for each edge that leaves it.

Every operation is built by `OPERATIONS[name](channels, stride, edges, norm)` and called as
`operation(x, train=...)` with x `[C, B, H, W]`; it returns `[n, C, B, H', W']` for its n =
`edges` edges, or `[1, C, B, H', W']` when all of them get the same value. `norm` builds a
batch norm, so that affine or not, running statistics or not, is decided in one place.
Derived networks use the same modules with one edge.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from darts_jax.errors import UserError
from darts_jax.models.layers import (
    Conv,
    DepthwiseConv,
    PointwiseConv,
    avg_pool,
    max_pool,
)
from darts_jax.models.normalise import exact

Norm = Callable[..., nn.Module]


class SepConv(nn.Module):
    """(ReLU, depthwise KxK, pointwise, batch norm) twice; the stride is in the first."""

    channels: int
    stride: int
    edges: int
    norm: Norm
    kernel_size: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        for i, stride in enumerate((self.stride, 1)):
            x = nn.relu(x)
            x = DepthwiseConv(self.edges, self.kernel_size, stride, name=f"depth{i}")(x)
            x = PointwiseConv(self.channels, name=f"point{i}")(x)
            x = self.norm(name=f"norm{i}")(x, train=train)
        return x


class DilConv(nn.Module):
    """ReLU, depthwise KxK with dilation 2, pointwise, batch norm."""

    channels: int
    stride: int
    edges: int
    norm: Norm
    kernel_size: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = nn.relu(x)
        x = DepthwiseConv(
            self.edges, self.kernel_size, self.stride, dilation=2, name="depth0"
        )(x)
        x = PointwiseConv(self.channels, name="point0")(x)
        return self.norm(name="norm0")(x, train=train)


class ReLUConvBN(nn.Module):
    """ReLU, dense KxK convolution, batch norm."""

    channels: int
    stride: int
    edges: int
    norm: Norm
    kernel_size: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        size, stride = self.kernel_size, self.stride
        x = Conv(
            self.channels,
            (size, size),
            (stride, stride),
            (size // 2, size // 2),
            self.edges,
            name="conv0",
        )(nn.relu(x))
        return self.norm(name="norm0")(x, train=train)


class Conv7x1(nn.Module):
    """ReLU, 1x7 and 7x1 dense convolutions, batch norm: NASNet's conv_7x1_1x7."""

    channels: int
    stride: int
    edges: int
    norm: Norm

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        if self.edges != 1:
            # A chain of two dense convolutions has no shared input at its second half.
            raise UserError(
                "conv_7x1_1x7 is a primitive of derived networks only; leave it out of "
                "the search space"
            )
        x = Conv(self.channels, (1, 7), (1, self.stride), (0, 3), name="conv0")(
            nn.relu(x)
        )
        x = Conv(self.channels, (7, 1), (self.stride, 1), (3, 0), name="conv1")(x[0])
        return self.norm(name="norm0")(x, train=train)


class FactorizedReduce(nn.Module):
    """ReLU, two 1x1 convolutions of stride 2 (the second one pixel off), batch norm."""

    channels: int
    edges: int
    norm: Norm

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = nn.relu(x)
        # Odd sizes: pad so that the shifted half has as many rows; even sizes: no change.
        odd = [(0, size % 2) for size in x.shape[-2:]]
        shifted = jnp.pad(x, [(0, 0), (0, 0), *odd])[:, :, 1:, 1:]
        half = self.channels // 2
        pair = [
            Conv(half, (1, 1), (2, 2), edges=self.edges, name="conv0")(x),
            Conv(self.channels - half, (1, 1), (2, 2), edges=self.edges, name="conv1")(
                shifted
            ),
        ]
        return self.norm(name="norm0")(jnp.concatenate(pair, 1), train=train)


def preprocess(
    inputs: tuple[jax.Array, ...],
    channels: int,
    reduction_previous: bool,
    norm: Norm,
    train: bool,
) -> list[jax.Array]:
    """Returns a cell's inputs at its own number of channels; call it inside the cell.

    A DARTS cell has two inputs and projects both, the older one by a FactorizedReduce where
    the cell before was a reduction. A NAS-Bench-201 cell has one and takes it as it is.
    """
    if len(inputs) == 1:
        return list(inputs)
    s0, s1 = inputs
    if reduction_previous:
        s0 = FactorizedReduce(channels, 1, norm, name="preprocess0")(s0, train=train)
    else:
        s0 = ReLUConvBN(channels, 1, 1, norm, name="preprocess0")(s0, train=train)
    s1 = ReLUConvBN(channels, 1, 1, norm, name="preprocess1")(s1, train=train)
    return [s0[0], s1[0]]


class SkipConnect(nn.Module):
    """The identity, or a FactorizedReduce where the edge has stride 2."""

    channels: int
    stride: int
    edges: int
    norm: Norm

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        if self.stride == 1:
            return x[None]
        reduce = FactorizedReduce(self.channels, self.edges, self.norm, name="reduce")
        return reduce(x, train=train)


class Pool(nn.Module):
    """3x3 max or average pool; with `pool_norm` a batch norm follows (DARTS search only)."""

    channels: int
    stride: int
    edges: int
    norm: Norm
    kind: str
    pool_norm: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        pool = {"max": max_pool, "avg": avg_pool}[self.kind]
        x = pool(x, stride=self.stride)
        if not self.pool_norm:
            return x[None]
        norm = self.norm(affine=False, edges=self.edges, name="norm0")
        return norm(x, train=train)


class Noise(nn.Module):
    """Standard normal noise of the input's shape: the harmful primitive of space S4."""

    channels: int
    stride: int
    edges: int
    norm: Norm

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        shape = (self.edges, *x[:, :, :: self.stride, :: self.stride].shape)
        # Drawn alike in every precision.
        noise = jax.random.normal(self.make_rng("noise"), shape, exact(x.dtype))
        return noise.astype(x.dtype)


class Zero(nn.Module):
    """The primitive "none": zeros of the output's shape."""

    channels: int
    stride: int
    edges: int
    norm: Norm

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return jnp.zeros_like(x[None, :, :, :: self.stride, :: self.stride])


def _with(module: Callable[..., nn.Module], **extra: Any) -> Callable[..., nn.Module]:
    """Binds a module's extra fields, leaving (channels, stride, edges, norm, name)."""

    def build(
        channels: int, stride: int, edges: int, norm: Norm, **kwargs: Any
    ) -> nn.Module:
        return module(channels, stride, edges, norm, **extra, **kwargs)

    return build


OPERATIONS: dict[str, Callable[..., nn.Module]] = {
    "none": Zero,
    "max_pool_3x3": _with(Pool, kind="max"),
    "avg_pool_3x3": _with(Pool, kind="avg"),
    "skip_connect": SkipConnect,
    "sep_conv_3x3": _with(SepConv, kernel_size=3),
    "sep_conv_5x5": _with(SepConv, kernel_size=5),
    "sep_conv_7x7": _with(SepConv, kernel_size=7),
    "dil_conv_3x3": _with(DilConv, kernel_size=3),
    "dil_conv_5x5": _with(DilConv, kernel_size=5),
    "conv_7x1_1x7": Conv7x1,
    "nor_conv_1x1": _with(ReLUConvBN, kernel_size=1),
    "nor_conv_3x3": _with(ReLUConvBN, kernel_size=3),
    "noise": Noise,
}
