"""The kernels as JAX functions: pools against shifted views, vmap, threads, precision."""

import functools
import os
import shutil
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darts_jax.kernels.compiled import kernels, why_not
from darts_jax.kernels.dense import native_dense
from darts_jax.kernels.depthwise import native_depthwise
from darts_jax.models import depthwise, layers

pytestmark = pytest.mark.skipif(kernels() is None, reason=f"no kernels: {why_not()}")

IMAGES = [(8, 8), (7, 9), (4, 5), (1, 1), (2, 3), (33, 34)]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def derivatives(function: Any, x: jax.Array, weights: jax.Array) -> Any:
    """Value, gradient, and the gradient's derivative forward and in reverse."""

    def scalar(x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.tanh(function(x)) * weights)

    gradient = jax.grad(scalar)
    _, forward = jax.jvp(gradient, (x,), (jnp.cos(x),))
    reverse = jax.grad(lambda x: jnp.sum(jnp.square(gradient(x))))(x)
    return function(x), gradient(x), forward, reverse


@pytest.mark.parametrize("pool", [layers.max_pool, layers.avg_pool])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("image", IMAGES, ids=str)
def test_pools_are_those_of_shifted_views(
    pool: Any,
    stride: int,
    image: tuple[int, int],
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with jax.enable_x64(True):
        # Rounded, so that there are ties, of which the first must win.
        x = jnp.asarray(np.round(2 * rng.normal(size=(2, 3, *image))))
        call = functools.partial(pool, stride=stride)
        weights = jnp.asarray(rng.normal(size=call(x).shape))
        assert depthwise.choice() == "native"
        found = derivatives(call, x, weights)
        mapped = jax.vmap(jax.grad(lambda x: jnp.sum(call(x) * weights)))(
            jnp.stack([x, -x])
        )
        monkeypatch.setattr(depthwise, "choice", lambda: "banded")
        for a, b in zip(found, derivatives(call, x, weights), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)
        for row, value in zip(mapped, (x, -x), strict=True):
            wanted = jax.grad(lambda x: jnp.sum(call(x) * weights))(value)
            np.testing.assert_allclose(row, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mapped", [(0, None), (None, 0), (0, 0), (2, 4)])
def test_depthwise_under_vmap(mapped: Any, rng: np.random.Generator) -> None:
    shapes = [2, 3, 6, 5], [2, 3, 3, 2]
    for shape, axis in zip(shapes, mapped, strict=True):
        if axis is not None:
            shape.insert(axis, 4)
    x, kernel = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)

    def gradients(x: jax.Array, kernel: jax.Array) -> Any:
        def scalar(x: jax.Array, kernel: jax.Array) -> jax.Array:
            return jnp.sum(jnp.sin(native_depthwise(x, kernel, 2, 2)))

        return jax.grad(scalar, (0, 1))(x, kernel)

    together = jax.vmap(gradients, mapped)(x, kernel)
    for seed in range(4):
        one = [
            a if axis is None else jnp.take(a, seed, axis)
            for a, axis in zip((x, kernel), mapped, strict=True)
        ]
        for a, b in zip(together, gradients(*one), strict=True):
            np.testing.assert_array_equal(a[seed], b)


def test_a_batch_in_bfloat16_is_computed_in_float32(rng: np.random.Generator) -> None:
    x = jnp.asarray(rng.normal(size=(2, 3, 6, 5)), jnp.bfloat16)
    kernel = jnp.asarray(rng.normal(size=(1, 3, 3, 2)), jnp.float32)
    y = native_depthwise(x, kernel, 1, 1)
    wanted = native_depthwise(x.astype(jnp.float32), kernel, 1, 1)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, wanted.astype(jnp.bfloat16))


# Channels in and out, batch, image, size: blocks of outputs that are full and not, groups of
# images that are full and not, more groups than tasks.
DENSE = [
    (3, 5, 7, (9, 6), 3),
    (4, 17, 70, (4, 4), 3),
    (2, 6, 3, (33, 34), 5),
    (5, 4, 40, (8, 8), 3),
    (1, 1, 1, (1, 2), 7),
]


def _convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    pad = len(kernel) // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        [(pad, pad)] * 2,
        dimension_numbers=("CNHW", "HWIO", "CNHW"),
    )


@pytest.mark.parametrize("shape", DENSE, ids=str)
def test_dense_convolution_and_its_derivatives(
    shape: Any, rng: np.random.Generator
) -> None:
    channels, outputs, batch, image, size = shape

    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape))

    with jax.enable_x64(True):
        pair = draw(channels, batch, *image), draw(size, size, channels, outputs)
        weights = draw(outputs, batch, *image)
        direction = jax.tree.map(jnp.cos, pair)

        def all_of(convolve: Any) -> Any:
            def value(pair: Any) -> jax.Array:
                return jnp.sum(jnp.tanh(convolve(*pair)) * weights)

            gradient = jax.grad(value)
            return jax.jit(
                lambda pair: (
                    convolve(*pair),
                    jax.jvp(gradient, (pair,), (direction,)),
                    jax.grad(lambda p: jax.jvp(value, (p,), (direction,))[1])(pair),
                    jax.vmap(convolve, (None, 0))(pair[0], jnp.stack([pair[1]] * 2)),
                )
            )(pair)

        found, wanted = all_of(native_dense), all_of(_convolution)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-11 * jnp.abs(b).max())


def test_dense_convolution_in_single_precision(rng: np.random.Generator) -> None:
    x = jnp.asarray(rng.normal(size=(16, 20, 16, 16)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 16, 20)), jnp.float32)

    def all_of(convolve: Any) -> Any:
        y, back = jax.vjp(convolve, x, kernel)
        return y, back(jnp.sin(y))

    found, wanted = all_of(native_dense), all_of(_convolution)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * jnp.abs(b).max())
    y = native_dense(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16))
    assert y.dtype == jnp.bfloat16


@pytest.mark.skipif(not shutil.which("taskset"), reason="taskset chooses the cores")
def test_the_number_of_threads_changes_no_bit() -> None:
    code = (
        "import os, jax, jax.numpy as jnp, hashlib\n"
        "from darts_jax.kernels.mixed import *\n"
        "def draw(*s): return jax.random.normal(jax.random.key(sum(s)), s)\n"
        "k = [StageKernels(draw(2, 5, 5, 4), draw(2, 4, 4), draw(2, 4), draw(2, 4)),\n"
        "     StageKernels(draw(2, 5, 5, 4), draw(2, 4, 4), draw(2, 4), draw(2, 4))]\n"
        "dense = StageKernels(draw(2, 3, 3, 4, 4), None, draw(2, 4), draw(2, 4))\n"
        "shared = Shared('max_pool', True), Shared('avg_pool', False)\n"
        "b = Branches(((Stage(1, 1), Stage(1, 1)), (Stage(1, 1),)), shared)\n"
        "for x in draw(4, 37, 9, 9), draw(4, 48, 8, 8):\n"
        "    o = Operands(x, draw(2, 4), (tuple(k), (dense,)))\n"
        "    mixed, kept = mixed_forward(o, b, 1e-5)\n"
        "    back = mixed_backward(o, b, kept, jnp.sin(mixed), 1e-5, 2)\n"
        "    print(hashlib.sha256(b''.join(bytes(memoryview(jax.device_get(a)))\n"
        "          for a in jax.tree.leaves((mixed, kept, back)))).hexdigest())"
    )

    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("one core only")
    runs = [
        subprocess.run(
            ["taskset", "-c", ",".join(map(str, chosen)), sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for chosen in (cores[:1], cores)
    ]
    assert runs[0] == runs[1]
