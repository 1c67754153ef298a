"""Convolutions, batch norm, pools and ReLU against loops in numpy."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darts_jax.models import depthwise
from darts_jax.models.layers import (
    BatchNorm,
    Conv,
    Linear,
    PointwiseConv,
    avg_pool,
    max_pool,
    running_average,
)
from darts_jax.models.operations import FactorizedReduce
from darts_jax.models.skeleton import ResidualBlock

assert_close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-12)


def _windows(height: int, width: int, size, stride, pad):
    """Yields (output row, output column, rows inside the image, columns inside)."""
    (kh, kw), (sh, sw), (ph, pw) = size, stride, pad
    for row in range((height + 2 * ph - kh) // sh + 1):
        for column in range((width + 2 * pw - kw) // sw + 1):
            rows = range(row * sh - ph, row * sh - ph + kh)
            columns = range(column * sw - pw, column * sw - pw + kw)
            yield row, column, rows, columns


def _inside(span: range, length: int) -> list[int]:
    return [i for i in span if 0 <= i < length]


# --- max pool


def _max_pool(x: np.ndarray, cotangent: np.ndarray, stride: int):
    """Output and input gradient; the first of equal values in row-major order takes it."""
    height, width = x.shape[-2:]
    y = np.zeros((*x.shape[:-2], -(-height // stride), -(-width // stride)))
    dx = np.zeros(x.shape)
    windows = _windows(height, width, (3, 3), (stride, stride), (1, 1))
    for row, column, rows, columns in windows:
        pixels = [
            (h, w) for h in _inside(rows, height) for w in _inside(columns, width)
        ]
        for lead in np.ndindex(x.shape[:-2]):
            best = pixels[0]
            for pixel in pixels[1:]:
                if x[lead + pixel] > x[lead + best]:
                    best = pixel
            y[*lead, row, column] = x[lead + best]
            dx[lead + best] += cotangent[*lead, row, column]
    return y, dx


@functools.partial(jax.jit, static_argnums=0)
def _pool_and_gradient(stride: int, x: jax.Array, cotangent: jax.Array):
    y, pull_back = jax.vjp(functools.partial(max_pool, stride=stride), x)
    return y, pull_back(cotangent)[0]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("image", [(6, 6), (7, 9), (1, 2)])
def test_max_pool_gives_the_gradient_to_the_first_of_ties(
    stride: int, image: tuple[int, int], float64: None, rng: np.random.Generator
) -> None:
    # Three values only, so that nearly every window has ties; all negative, so that a
    # padding of zeros would win.
    x = rng.integers(-3, 0, size=(2, 3, *image)).astype(float)
    size = (-(-s // stride) for s in image)
    cotangent = rng.normal(size=(2, 3, *size))
    y, dx = _pool_and_gradient(stride, x, cotangent)
    wanted, gradient = _max_pool(x, cotangent, stride)
    np.testing.assert_array_equal(y, wanted)
    assert_close(dx, gradient)


def test_max_pool_of_a_constant_image(float64: None) -> None:
    x, cotangent = np.full((1, 1, 4, 4), 2.0), np.ones((1, 1, 2, 2))
    _, dx = _pool_and_gradient(2, x, cotangent)
    assert np.flatnonzero(dx).tolist() == [0, 1, 4, 5]  # top left of each window


@pytest.mark.parametrize("choice", ["native", "banded"])
def test_max_pool_of_a_nan(choice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All windows that see it give it, as in PyTorch; padding is no number to prefer."""
    if choice == "native" and depthwise.choice() != "native":
        pytest.skip("the kernels are not to be had")
    monkeypatch.setattr(depthwise, "choice", lambda: choice)
    x = jnp.ones((1, 1, 5, 5)).at[0, 0, 2, 2].set(jnp.nan)
    found = np.isnan(max_pool(x, stride=1)[0, 0])
    assert found[1:4, 1:4].all() and found.sum() == 9
    assert jnp.isnan(max_pool(jnp.full((1, 1, 2, 2), jnp.nan), stride=2)).all()


# --- average pool


# The search's, the auxiliary heads' (CIFAR, ImageNet), NAS-Bench-201's shortcut.
@pytest.mark.parametrize(
    ("size", "stride", "pad"),
    [(3, 1, 1), (3, 2, 1), (5, 3, 0), (5, 2, 0), (2, 2, 0)],
)
@pytest.mark.parametrize("image", [(8, 8), (7, 9), (14, 11), (5, 6)])
def test_avg_pool_leaves_padding_out_of_the_count(
    size: int,
    stride: int,
    pad: int,
    image: tuple[int, int],
    float64: None,
    rng: np.random.Generator,
) -> None:
    x = rng.normal(size=(2, 3, *image))
    pool = functools.partial(avg_pool, size=size, stride=stride, pad=pad)
    y = np.asarray(jax.jit(pool)(x))
    windows = list(_windows(*image, (size, size), (stride, stride), (pad, pad)))
    assert y.shape == (2, 3, windows[-1][0] + 1, windows[-1][1] + 1)
    for row, column, rows, columns in windows:
        part = x[..., _inside(rows, image[0]), :][..., _inside(columns, image[1])]
        assert_close(y[..., row, column], part.mean((-2, -1)))


def test_relu_has_no_gradient_at_zero() -> None:
    gradient = jax.vmap(jax.grad(nn.relu))(jnp.array([-1.0, -0.0, 0.0, 1.0]))
    np.testing.assert_array_equal(gradient, [0, 0, 0, 1])


# --- convolutions


def _conv(x: np.ndarray, kernel: np.ndarray, stride, padding) -> np.ndarray:
    """`[C, B, H, W]` and `[K, K', C, C']` to `[C', B, H', W']`."""
    height, width = x.shape[-2:]
    windows = list(_windows(height, width, kernel.shape[:2], stride, padding))
    shape = kernel.shape[-1], x.shape[1], windows[-1][0] + 1, windows[-1][1] + 1
    y = np.zeros(shape)
    for row, column, rows, columns in windows:
        for i, h in enumerate(rows):
            for j, w in enumerate(columns):
                if 0 <= h < height and 0 <= w < width:
                    y[:, :, row, column] += kernel[i, j].T @ x[:, :, h, w]
    return y


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("edges", [1, 2])
@pytest.mark.parametrize(
    ("size", "stride", "padding"),
    [
        ((1, 1), (1, 1), (0, 0)),
        ((1, 1), (2, 2), (0, 0)),
        ((3, 3), (1, 1), (1, 1)),
        ((3, 3), (2, 2), (1, 1)),
        ((1, 7), (1, 2), (0, 3)),
        ((7, 1), (2, 1), (3, 0)),
        ((2, 2), (1, 1), (0, 0)),
    ],
)
def test_conv_equals_the_loop(
    kernels: bool,
    edges: int,
    size,
    stride,
    padding,
    float64: None,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if kernels and not depthwise.native():
        pytest.skip("no compiler for the kernels")
    monkeypatch.setattr(depthwise, "native", lambda: kernels)
    x = rng.normal(size=(3, 2, 7, 6))
    kernel = rng.normal(size=(edges, *size, 3, 4))
    y = Conv(4, size, stride, padding, edges).apply({"params": {"conv": kernel}}, x)
    for e in range(edges):
        assert_close(y[e], _conv(x, kernel[e], stride, padding))


def test_pointwise_conv_and_linear(float64: None, rng: np.random.Generator) -> None:
    x, kernel = rng.normal(size=(2, 3, 2, 4, 5)), rng.normal(size=(2, 3, 4))
    y = PointwiseConv(4).apply({"params": {"pointwise": kernel}}, x)
    for e in range(2):
        assert_close(y[e], _conv(x[e], kernel[e][None, None], (1, 1), (0, 0)))
    x, kernel, bias = (rng.normal(size=shape) for shape in ((2, 3), (3, 4), (4,)))
    y = Linear(4).apply({"params": {"linear": kernel, "bias_of_3": bias}}, x)
    assert_close(y, x @ kernel + bias)


@pytest.mark.parametrize("image", [(6, 6), (7, 9), (1, 1)])
def test_factorized_reduce_halves_odd_sizes_too(
    image: tuple[int, int], float64: None, rng: np.random.Generator
) -> None:
    x = rng.normal(size=(3, 2, *image))
    half = [rng.normal(size=(1, 1, 1, 3, n)) for n in (2, 3)]  # 5 channels
    weights = {f"conv{i}": {"conv": kernel} for i, kernel in enumerate(half)}
    module = FactorizedReduce(5, 1, lambda name: _Identity(name=name))
    y = module.apply({"params": weights}, x, train=True)[0]
    padded = np.pad(x.clip(0), [(0, 0), (0, 0), *[(0, s % 2) for s in image]])
    for channels, kernel, start in ((slice(2), half[0], 0), (slice(2, 5), half[1], 1)):
        part = padded[:, :, start::2, start::2]
        assert_close(y[channels], _conv(part, kernel[0], (1, 1), (0, 0)))


@pytest.mark.parametrize("image", [(4, 6), (5, 7)])
def test_the_shortcut_of_nas_bench_201_averages_what_there_is(
    image: tuple[int, int], float64: None, rng: np.random.Generator
) -> None:
    x = rng.normal(size=(3, 2, *image))
    module = ResidualBlock(3, functools.partial(BatchNorm, affine=True))
    shapes = jax.eval_shape(
        functools.partial(module.init, train=False),
        jax.random.key(0),
        x.astype(np.float32),
    )
    variables = jax.tree.map(lambda s: np.zeros(s.shape), shapes)  # the other branch: 0
    variables["params"]["shortcut"]["conv"] = np.eye(3)[None, None, None]
    y = np.asarray(module.apply(variables, x, train=False))
    assert y.shape == (3, 2, *(-(-size // 2) for size in image))
    for row, column in np.ndindex(*y.shape[2:]):
        part = x[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        assert_close(y[:, :, row, column], part.mean((-2, -1)))


class _Identity(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return x


# --- batch norm


def _stats(shape: tuple[int, ...], rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"mean": rng.normal(size=shape), "var": rng.uniform(0.5, 2, size=shape)}


def _normalised(x: np.ndarray, mean: np.ndarray, var: np.ndarray) -> np.ndarray:
    mean, var = mean[..., None, None, None], var[..., None, None, None]
    return (x - mean) / np.sqrt(var + 1e-5)


@pytest.mark.parametrize("lead", [(3,), (2, 3)])
def test_batch_norm_in_training(
    lead: tuple[int, ...], float64: None, rng: np.random.Generator
) -> None:
    x, stats = rng.normal(2, 3, size=(*lead, 4, 5, 2)), _stats(lead, rng)
    weights = {"scale": rng.normal(size=lead), "bias": rng.normal(size=lead)}
    y, updated = BatchNorm().apply(
        {"params": weights, "batch_stats": stats}, x, train=True, mutable="batch_stats"
    )
    axes = (-3, -2, -1)
    mean = x.mean(axes)
    wanted = _normalised(x, mean, x.var(axes))  # biased
    scale, bias = (weights[k][..., None, None, None] for k in ("scale", "bias"))
    assert_close(y, wanted * scale + bias)
    after = running_average(stats, updated["batch_stats"])
    assert_close(after["mean"], 0.9 * stats["mean"] + 0.1 * mean)
    assert_close(
        after["var"], 0.9 * stats["var"] + 0.1 * x.var(axes, ddof=1)
    )  # unbiased


@pytest.mark.parametrize("evaluation", ["running", "batch"])
def test_batch_norm_in_evaluation(
    evaluation: str, float64: None, rng: np.random.Generator
) -> None:
    x, stats = rng.normal(2, 3, size=(3, 4, 5, 2)), _stats((3,), rng)
    norm = BatchNorm(affine=False, evaluation=evaluation)
    y, updated = norm.apply(
        {"batch_stats": stats}, x, train=False, mutable="batch_stats"
    )
    used = stats
    if evaluation == "batch":
        used = {"mean": x.mean((1, 2, 3)), "var": x.var((1, 2, 3))}
    assert_close(y, _normalised(x, **used))
    jax.tree.map(np.testing.assert_array_equal, updated["batch_stats"], stats)


def test_batch_norm_of_one_pixel_stays_finite() -> None:
    x = jnp.ones((2, 1, 1, 1))
    stats = {"mean": jnp.zeros(2), "var": jnp.ones(2)}
    norm = BatchNorm(affine=False)
    y, updated = norm.apply(
        {"batch_stats": stats}, x, train=True, mutable="batch_stats"
    )
    assert np.isfinite(y).all()
    assert np.isfinite(updated["batch_stats"]["var"]).all()


def test_edges_that_share_an_input_keep_statistics_of_their_own(
    float64: None, rng: np.random.Generator
) -> None:
    x, stats = rng.normal(2, 3, size=(3, 4, 5, 2)), _stats((2, 3), rng)
    norm = BatchNorm(affine=False, edges=2)
    variables = {"batch_stats": stats}
    y, updated = norm.apply(variables, x, train=True, mutable="batch_stats")
    assert y.shape == (1, *x.shape)  # the same for both: computed once
    assert_close(y[0], _normalised(x, x.mean((1, 2, 3)), x.var((1, 2, 3))))
    after = running_average(stats, updated["batch_stats"])
    assert_close(after["mean"], 0.9 * stats["mean"] + 0.1 * x.mean((1, 2, 3)))
    assert_close(after["var"], 0.9 * stats["var"] + 0.1 * x.var((1, 2, 3), ddof=1))
    y = norm.apply(variables, x, train=False)
    assert y.shape == (2, *x.shape)
    for e in range(2):
        assert_close(y[e], _normalised(x, stats["mean"][e], stats["var"][e]))


def test_initialising_does_not_move_the_statistics() -> None:
    x = jnp.full((3, 4, 5, 2), 7.0)
    stats = BatchNorm().init(jax.random.key(0), x, train=True)["batch_stats"]
    np.testing.assert_array_equal(stats["mean"], 0)
    np.testing.assert_array_equal(stats["var"], 1)
