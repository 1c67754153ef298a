"""Depthwise convolution: banded, grouped and a loop over pixels are the same function."""

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darts_jax.kernels.compiled import kernels
from darts_jax.models import depthwise
from darts_jax.models.depthwise import DEPTHWISE, depthwise_conv

IMPLEMENTATIONS = {
    name: function
    for name, function in DEPTHWISE.items()
    if name != "native" or kernels() is not None
}
CONFIGURATIONS = list(
    itertools.product((3, 5, 7), (1, 2), (1, 2))
)  # K, stride, dilation
# Edges and image: odd, even, not square; smaller than the kernel; one row. Banded products
# are over rows or whole images, by the size and the number of edges: both are here.
SHAPES = ((1, (8, 8)), (2, (7, 9)), (2, (3, 5)), (1, (10, 6)), (3, (1, 4)))


def _loop(x: np.ndarray, kernel: np.ndarray, stride: int, dilation: int) -> np.ndarray:
    """`[n, C, B, H, W]` and `[n, K, K, C]`, one output pixel and one tap at a time."""
    edges, channels, batch, height, width = x.shape
    size = kernel.shape[1]
    out = (height + stride - 1) // stride, (width + stride - 1) // stride
    y = np.zeros((edges, channels, batch, *out))
    for row, column in np.ndindex(*out):
        for i, j in np.ndindex(size, size):
            h = row * stride + dilation * (i - size // 2)
            w = column * stride + dilation * (j - size // 2)
            if 0 <= h < height and 0 <= w < width:
                tap = kernel[:, i, j, :, None] * x[:, :, :, h, w]
                y[:, :, :, row, column] += tap
    return y


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("size", "stride", "dilation"), CONFIGURATIONS)
def test_equals_the_loop(
    implementation: str,
    size: int,
    stride: int,
    dilation: int,
    float64: None,
    rng: np.random.Generator,
) -> None:
    convolve = functools.partial(
        IMPLEMENTATIONS[implementation], stride=stride, dilation=dilation
    )
    pairs = [
        (rng.normal(size=(2, 2, *image)), rng.normal(size=(edges, size, size, 2)))
        for edges, image in SHAPES
    ]
    outputs = jax.jit(lambda pairs: [convolve(x, kernel) for x, kernel in pairs])(pairs)
    for (x, kernel), y in zip(pairs, outputs, strict=True):
        wanted = _loop(np.stack([x] * len(kernel)), kernel, stride, dilation)
        assert y.shape == wanted.shape
        np.testing.assert_allclose(y, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_an_input_for_each_edge(
    implementation: str,
    float64: None,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(depthwise, "choice", lambda: implementation)
    x, kernel = rng.normal(size=(3, 4, 2, 7, 6)), rng.normal(size=(3, 5, 5, 4))
    for stride, dilation in ((1, 1), (2, 2)):
        y = depthwise_conv(x, kernel, stride=stride, dilation=dilation)
        wanted = _loop(x, kernel, stride, dilation)
        np.testing.assert_allclose(y, wanted, rtol=0, atol=1e-12)
        one = depthwise_conv(x[0], kernel, stride=stride, dilation=dilation)
        wanted = _loop(np.stack([x[0]] * 3), kernel, stride, dilation)
        np.testing.assert_allclose(one, wanted, rtol=0, atol=1e-12)


def _derivatives(convolve: Callable, x, kernel, tangents) -> tuple:
    """First derivatives of a scalar, and their derivatives along `tangents`."""

    def scalar(x, kernel):
        return jnp.sum(jnp.sin(convolve(x, kernel)))

    gradient = jax.grad(scalar, (0, 1))
    return jax.jvp(gradient, (x, kernel), tangents)


@pytest.mark.parametrize(
    ("size", "stride", "dilation", "image"),
    [
        (3, 1, 1, (9, 10)),
        (3, 2, 2, (9, 10)),
        (5, 2, 1, (9, 10)),
        (5, 1, 2, (4, 3)),
        (3, 2, 1, (4, 3)),
    ],
)
def test_the_implementations_agree_to_second_order(
    size: int,
    stride: int,
    dilation: int,
    image: tuple[int, int],
    float64: None,
    rng: np.random.Generator,
) -> None:
    shapes = (2, 2, *image), (2, size, size, 2)
    x, kernel, *tangents = (rng.normal(size=shape) for shape in shapes * 2)
    results = [
        jax.jit(
            functools.partial(
                _derivatives,
                functools.partial(convolve, stride=stride, dilation=dilation),
            )
        )(x, kernel, tuple(tangents))
        for convolve in IMPLEMENTATIONS.values()
    ]
    for other in results[1:]:
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-11),
            results[0],
            other,
        )


def test_jit_changes_nothing(rng: np.random.Generator) -> None:
    x = jnp.asarray(rng.normal(size=(2, 2, 7, 6)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 3, 2)), jnp.float32)
    for convolve in IMPLEMENTATIONS.values():
        bound = functools.partial(convolve, stride=2, dilation=2)
        eager, compiled = bound(x, kernel), jax.jit(bound)(x, kernel)
        assert eager.dtype == compiled.dtype == jnp.float32
        np.testing.assert_allclose(eager, compiled, rtol=0, atol=1e-5)


def test_without_our_kernels_it_is_banded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(depthwise, "kernels", lambda _: None)
    assert depthwise.choice() == "banded"  # grouped takes minutes to compile
    monkeypatch.setattr(depthwise, "kernels", lambda _: {"Forward": "name"})
    assert depthwise.choice() == "native"  # the tests run on CPUs
