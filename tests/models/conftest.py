"""What the tests of the networks share."""

from collections.abc import Iterator

import jax
import numpy as np
import pytest


@pytest.fixture(autouse=True)
def quick_compilation() -> Iterator[None]:
    """Compilation in half the time: these tests run what they compile once."""
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.config.update(name, True)
    yield
    jax.config.update(name, before)


@pytest.fixture
def float64() -> Iterator[None]:
    """Float64 within one test, where a comparison must not be of rounding errors."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
