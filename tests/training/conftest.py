"""Toy models with running statistics: quick, and simple enough to be written out.

Tests reach all of it through the fixture `toy`, since test files cannot import each other.
"""

import sys
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darts_jax.spaces import SPACES
from darts_jax.types import Batch, Model

SPACE = SPACES["tiny"](num_nodes=1, primitives=("none", "skip_connect", "sep_conv_3x3"))


@pytest.fixture
def toy() -> ModuleType:
    """This module."""
    return sys.modules[__name__]


IMAGE = (2, 2, 1)
CLASSES = 3


def init(key: jax.Array) -> tuple[Any, Any]:
    first, second = jax.random.split(key)
    weights = {
        "first": jax.random.normal(first, (4, 5)),
        "second": jax.random.normal(second, (5, CLASSES)),
    }
    return weights, {"mean": jnp.ones(5)}


def forward(
    weights: Any, stats: Any, images: jax.Array, factor: Any, train: bool, key: Any
) -> tuple[jax.Array, Any]:
    hidden = jnp.tanh(images.reshape(len(images), -1) @ weights["first"]) * factor
    logits = hidden @ weights["second"]
    if not train:
        return logits + stats["mean"][:CLASSES], stats
    noise = 0.1 * jax.random.normal(key, logits.shape)
    return logits + noise, {"mean": 0.9 * stats["mean"] + 0.1 * hidden.mean(0)}


def supernet_apply(
    weights: Any,
    stats: Any,
    images: jax.Array,
    edge_weights: Any,
    *,
    train: bool,
    key: jax.Array | None = None,
) -> tuple[jax.Array, Any]:
    mix = edge_weights["normal"] * jnp.asarray([[1.0, -2.0, 3.0], [0.5, 1.0, -1.0]])
    factor = 1 + mix.sum() + edge_weights["reduce"][0, 1]
    return forward(weights, stats, images, factor, train, key)


def network_apply(
    weights: Any,
    stats: Any,
    images: jax.Array,
    *,
    train: bool,
    key: jax.Array | None = None,
    drop_path: Any = 0.25,
) -> tuple[jax.Array, Any]:
    return forward(weights, stats, images, 1.0 - drop_path, train, key)


def auxiliary_apply(*args: Any, train: bool, **kwargs: Any) -> tuple[Any, Any]:
    logits, stats = network_apply(*args, train=train, **kwargs)
    return ((logits, jnp.flip(logits, -1)) if train else logits), stats


SUPERNET = Model(init, supernet_apply)
NETWORK = Model(init, network_apply)
WITH_AUXILIARY = Model(init, auxiliary_apply)


def batch(seed: int, size: int = 6) -> Batch:
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(size, *IMAGE))
    return Batch(jnp.asarray(images), jnp.asarray(rng.integers(0, CLASSES, size)))


def assert_close(found: Any, wanted: Any, rtol: float = 1e-10) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-12),
        found,
        wanted,
    )


def raw(tree: Any) -> list[bytes]:
    """The bits of every leaf, PRNG keys among them."""

    def bits(leaf: Any) -> bytes:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        return np.asarray(leaf).tobytes()

    return [bits(leaf) for leaf in jax.tree.leaves(tree)]
