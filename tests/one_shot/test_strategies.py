"""Every one-shot strategy: alphas, relaxation and derivation fit every space."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darts_jax.one_shot import DARTS, ONE_SHOT
from darts_jax.one_shot.strategy import OneShot
from darts_jax.spaces import SPACES, Space, check_genotype
from darts_jax.spaces.darts import darts

PER_EDGE = darts(
    num_nodes=1,
    edge_primitives={
        "normal": [["none", "skip_connect"], ["skip_connect", "sep_conv_3x3"]],
        "reduce": [["sep_conv_3x3"], ["none", "skip_connect", "sep_conv_3x3"]],
    },
)


@pytest.fixture(params=ONE_SHOT.values(), ids=ONE_SHOT)
def strategy(request: Any) -> OneShot:
    return request.param


@pytest.fixture(params=[*SPACES.values(), lambda: PER_EDGE], ids=[*SPACES, "per_edge"])
def space(request: Any) -> Space:
    return request.param()


def test_contract(strategy: OneShot, space: Space) -> None:
    """From a key to a genotype of the space, with every array `[E, O]` float32."""
    alphas = strategy.initial_alphas(space, jax.random.key(0), 1.0)
    edge_weights = jax.jit(lambda a: strategy.relax(space, a))(alphas)
    shape = (space.num_edges, len(space.primitives))
    for tree in (alphas, edge_weights):
        assert set(tree) == set(space.cell_kinds)
        for value in tree.values():
            assert (value.shape, value.dtype) == (shape, jnp.float32)
            assert not value.weak_type
            assert np.isfinite(value).all()
    for kind, value in edge_weights.items():
        assert (np.asarray(value)[~space.mask(kind)] == 0).all()
    genotype = strategy.select(space, jax.tree.map(np.asarray, edge_weights))
    check_genotype(genotype, space)


def test_edge_weights_of_darts_sum_to_one(space: Space) -> None:
    alphas = ONE_SHOT["darts"].initial_alphas(space, jax.random.key(0), 1.0)
    for value in ONE_SHOT["darts"].relax(space, alphas).values():
        np.testing.assert_allclose(value.sum(-1), 1, rtol=1e-6)


def test_gradient_of_the_relaxation_is_finite(strategy: OneShot, space: Space) -> None:
    """Also where an edge lacks primitives: a mask must not leave 0 * inf behind."""
    alphas = strategy.initial_alphas(space, jax.random.key(0), 1.0)
    factors = jax.tree.map(lambda a: jnp.arange(a.size).reshape(a.shape), alphas)

    def total(alphas: Any) -> jax.Array:
        weighted = jax.tree.map(jnp.multiply, strategy.relax(space, alphas), factors)
        return sum(value.sum() for value in weighted.values())

    for kind, grad in jax.grad(total)(alphas).items():
        assert np.isfinite(grad).all()
        assert (np.asarray(grad)[~space.mask(kind)] == 0).all()


def test_seeds_and_cell_kinds_draw_their_own_alphas(strategy: OneShot) -> None:
    space = SPACES["darts"]()
    one, other = (
        strategy.initial_alphas(space, jax.random.key(seed), 1.0) for seed in (0, 1)
    )
    values = [a.ravel() for tree in (one, other) for a in tree.values()]
    for i, value in enumerate(values):
        for later in values[i + 1 :]:
            assert abs(np.corrcoef(value, later)[0, 1]) < 0.5


def test_scale_is_the_standard_deviation() -> None:
    space = SPACES["darts"]()
    alphas = DARTS.initial_alphas(space, jax.random.key(0), 1e-3)
    assert 0.85e-3 < np.std(np.concatenate(list(alphas.values()))) < 1.15e-3
    zero = DARTS.initial_alphas(space, jax.random.key(0), 0.0)
    assert not any(value.any() for value in zero.values())


def test_softmax_of_each_edge_with_its_own_primitives() -> None:
    rng = np.random.default_rng(0)
    alphas = {
        k: rng.normal(size=(2, 3)).astype(np.float32) for k in ("normal", "reduce")
    }
    found = DARTS.relax(PER_EDGE, jax.tree.map(jnp.asarray, alphas))
    for kind in ("normal", "reduce"):
        for edge in range(2):
            names = PER_EDGE.allowed(kind, edge)
            columns = [PER_EDGE.primitives.index(name) for name in names]
            powers = np.exp(alphas[kind][edge, columns].astype(np.float64))
            wanted = np.zeros(3)
            wanted[columns] = powers / powers.sum()
            np.testing.assert_allclose(found[kind][edge], wanted, rtol=1e-6)


def test_derivation_leaves_out_what_an_edge_lacks() -> None:
    alphas = {kind: jnp.zeros((2, 3)) for kind in ("normal", "reduce")}
    genotype = DARTS.select(
        PER_EDGE, jax.tree.map(np.asarray, DARTS.relax(PER_EDGE, alphas))
    )
    assert dict(genotype.cells["normal"].nodes[0][::-1])["skip_connect"] in (0, 1)
    assert ("sep_conv_3x3", 0) in genotype.cells["reduce"].nodes[0]
