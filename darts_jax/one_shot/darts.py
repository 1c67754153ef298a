"""DARTS: Differentiable Architecture Search (Liu, Simonyan and Yang 2019)."""

import jax
import jax.numpy as jnp

from darts_jax.derive import derive
from darts_jax.one_shot.strategy import OneShot
from darts_jax.spaces import Space
from darts_jax.types import Alphas, EdgeWeights


def normal_alphas(space: Space, key: jax.Array, scale: float) -> Alphas:
    """Returns alphas `{kind: [E, O]}` drawn from N(0, scale^2); the paper's are scale 0."""
    shape = (space.num_edges, len(space.primitives))
    keys = jax.random.split(key, len(space.cell_kinds))
    return {
        kind: scale * jax.random.normal(k, shape, jnp.float32)
        for kind, k in zip(space.cell_kinds, keys, strict=True)
    }


def softmax(space: Space, alphas: Alphas) -> EdgeWeights:
    """Returns softmax over the primitives of each edge, 0 where an edge lacks one (eq. 2)."""
    return {
        kind: jax.nn.softmax(values, where=jnp.asarray(space.mask(kind)))
        for kind, values in alphas.items()
    }


DARTS = OneShot(initial_alphas=normal_alphas, relax=softmax, select=derive)
