"""Many arrays as one vector and back, against numpy, with their derivatives."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darts_jax.kernels.compiled import kernels, why_not
from darts_jax.kernels.packing import (
    native_pack,
    native_unpack,
    plain_pack,
    plain_unpack,
)

native = pytest.mark.skipif(kernels() is None, reason=f"no kernels: {why_not()}")

SHAPES = ((2, 3), (), (5,), (0, 4), (1, 1, 7))
NUMBER = 19


@pytest.fixture
def parts() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape) for shape in SHAPES]


def _cut(whole: Any) -> list[Any]:
    """`native_unpack` by slices."""
    starts = np.cumsum([0, *(int(np.prod(shape)) for shape in SHAPES)])
    return [
        whole[start : start + int(np.prod(shape))].reshape(shape)
        for start, shape in zip(starts, SHAPES, strict=False)
    ]


@native
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_vector_holds_the_numbers_in_order(
    dtype: Any, compiled: bool, parts: list[np.ndarray]
) -> None:
    with jax.enable_x64(True):
        arrays = [jnp.asarray(part, dtype) for part in parts]
        pack, unpack = native_pack, lambda whole: native_unpack(whole, SHAPES)
        if compiled:
            pack, unpack = jax.jit(pack), jax.jit(unpack)
        whole = pack(arrays)
        assert (whole.shape, whole.dtype) == ((NUMBER,), dtype)
        np.testing.assert_array_equal(
            whole, np.concatenate([np.ravel(array) for array in arrays])
        )
        for array, again in zip(arrays, unpack(whole), strict=True):
            assert again.dtype == dtype
            np.testing.assert_array_equal(again, array)


def _derivatives(unpack: Any, pack: Any, x: jax.Array) -> Any:
    """Of a function with both maps in it: value, gradient, and the gradient's derivatives."""

    def scalar(x: jax.Array) -> jax.Array:
        first, second, *rest = unpack(jnp.sin(x))  # the last but one has no say
        whole = pack([first * second, jnp.exp(second), *rest[:-1], 2.0 * rest[-1] ** 2])
        return jnp.sum(whole**3) + jnp.sum(unpack(whole)[2])

    gradient = jax.grad(scalar)
    _, forward = jax.jvp(gradient, (x,), (jnp.cos(x),))
    reverse = jax.grad(lambda x: jnp.sum(jnp.square(gradient(x))))(x)
    return scalar(x), gradient(x), forward, reverse


@native
def test_derivatives_are_those_of_slices_and_concatenations() -> None:
    with jax.enable_x64(True):
        x = jnp.linspace(-1.0, 2.0, NUMBER)
        ours = jax.jit(
            lambda x: _derivatives(lambda w: native_unpack(w, SHAPES), native_pack, x)
        )
        plain = jax.jit(
            lambda x: _derivatives(
                _cut, lambda parts: jnp.concatenate([p.ravel() for p in parts]), x
            )
        )
        for a, b in zip(ours(x), plain(x), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-13)


@native
def test_a_part_without_gradient_has_a_gradient_of_zeros() -> None:
    x = jnp.arange(float(NUMBER))
    gradient = jax.grad(lambda x: native_unpack(x, SHAPES)[2].sum())(x)
    np.testing.assert_array_equal(np.flatnonzero(gradient), range(7, 12))


@native
def test_both_maps_under_vmap(parts: list[np.ndarray]) -> None:
    arrays = [jnp.asarray(part, jnp.float32) for part in parts]
    stacked = [jnp.stack([array, -array], -1) for array in arrays]
    whole = jax.vmap(native_pack, -1)(stacked)
    np.testing.assert_array_equal(whole[1], -native_pack(arrays))
    # One part is the same for all.
    mixed = jax.vmap(lambda a, b: native_pack([a, b]), (-1, None))(
        stacked[0], arrays[2]
    )
    np.testing.assert_array_equal(mixed[1], native_pack([-arrays[0], arrays[2]]))
    again = jax.vmap(lambda w: native_unpack(w, SHAPES), 1)(whole.T)
    for array, two in zip(arrays, again, strict=True):
        np.testing.assert_array_equal(two, jnp.stack([array, -array]))


@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
def test_the_plain_maps(lead: tuple[int, ...], parts: list[np.ndarray]) -> None:
    arrays = [jnp.broadcast_to(part, (*lead, *part.shape)) for part in parts]
    whole = plain_pack(*arrays, lead=lead)
    flat = np.concatenate([np.ravel(part) for part in parts]).astype(np.float32)
    np.testing.assert_array_equal(whole, np.broadcast_to(flat, (*lead, NUMBER)))
    again = plain_unpack(whole, shapes=SHAPES, lead=lead)
    for array, part in zip(arrays, again, strict=True):
        np.testing.assert_array_equal(part, array)


def test_gpus_get_the_plain_maps() -> None:
    def both(x: jax.Array) -> jax.Array:
        return native_pack(native_unpack(x, SHAPES)[::-1])

    traced = jax.jit(jax.vmap(both)).trace(jnp.zeros((2, NUMBER)))
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "stablehlo.concatenate" in text
    assert "custom_call" not in text
