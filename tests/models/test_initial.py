"""Initial weights: PyTorch's bounds, one draw, the same for the same key."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darts_jax.models.initial import initial_weights

# Name of the leaf, shape, fan-in by PyTorch's rules.
RANDOM = [
    ("depthwise", (8, 5, 5, 64), 25),  # groups = channels: each sees its own only
    ("pointwise", (8, 24, 48), 24),
    ("conv", (2, 3, 3, 16, 32), 144),
    ("conv", (1, 1, 7, 16, 64), 112),
    ("linear", (256, 40), 256),
    ("bias_of_64", (5000,), 64),
]


def _weights(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    shapes = {"cell0": {"norm0": {name: jax.ShapeDtypeStruct(shape, jnp.float32)}}}
    weights = initial_weights(jax.random.key(seed), shapes)
    return np.asarray(weights["cell0"]["norm0"][name])


@pytest.mark.parametrize(("name", "shape", "fan_in"), RANDOM)
def test_uniform_within_pytorchs_bound(
    name: str, shape: tuple[int, ...], fan_in: int
) -> None:
    values, bound = _weights(name, shape), 1 / math.sqrt(fan_in)
    assert values.shape == shape and values.dtype == np.float32
    assert np.abs(values).max() <= bound
    assert np.abs(values).max() > 0.99 * bound
    # Of a uniform distribution: five standard errors of the mean and of the variance.
    count = values.size
    assert abs(values.mean()) < 5 * bound / math.sqrt(3 * count)
    variance = bound**2 / 3
    assert abs(values.var() - variance) < 5 * variance * math.sqrt(0.8 / count)


def test_batch_norm_starts_as_the_identity() -> None:
    np.testing.assert_array_equal(_weights("scale", (2, 3)), 1)
    np.testing.assert_array_equal(_weights("bias", (2, 3)), 0)


def test_leaves_and_seeds_differ() -> None:
    shape = jax.ShapeDtypeStruct((1, 3, 3, 4, 4), jnp.float32)
    shapes = {f"cell{i}": {"conv0": {"conv": shape}} for i in range(3)}
    draws = [initial_weights(jax.random.key(seed), shapes) for seed in (0, 0, 1)]
    jax.tree.map(np.testing.assert_array_equal, draws[0], draws[1])
    arrays = [np.asarray(x).ravel() for x in jax.tree.leaves((draws[0], draws[2]))]
    assert len(np.unique(np.concatenate(arrays))) > 0.999 * 6 * 144
