"""Packed states: the same function of the same numbers, as one vector."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darts_jax import zoo
from darts_jax.bilevel import HYPERGRADIENTS
from darts_jax.genotype import Genotype
from darts_jax.kernels.compiled import kernels, why_not
from darts_jax.models import (
    count_parameters,
    make_network,
    make_supernet,
    pack_as,
    packed,
    unpack,
)
from darts_jax.models.packing import Packed, pack
from darts_jax.one_shot import ONE_SHOT
from darts_jax.spaces import SPACES
from darts_jax.training.optimizers import alpha_optimizer, weight_optimizer
from darts_jax.training.search_step import (
    Optimizers,
    initial_search_state,
    make_search_step,
)
from darts_jax.types import Batch

pytestmark = pytest.mark.skipif(kernels() is None, reason=f"no kernels: {why_not()}")

IMAGE = (8, 8, 3)


def assert_close(found: Any, wanted: Any, tolerance: float = 1e-11) -> None:
    """Every leaf within `tolerance` of its counterpart's largest number."""
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        scale = max(1e-3, float(np.abs(b).max()))
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale)


def _supernet() -> Any:
    space = SPACES["darts"](num_nodes=2)
    return space, make_supernet(
        space, image_shape=IMAGE, num_classes=4, num_cells=3, channels=2
    )


def test_a_tree_is_packed_and_unpacked() -> None:
    tree = {"b": np.arange(6.0).reshape(2, 3), "a": {"c": np.float64(7)}, "none": {}}
    vector = pack(tree)
    assert isinstance(vector, Packed)
    np.testing.assert_array_equal(vector.values, [7, 0, 1, 2, 3, 4, 5])
    mixed = {"packed": vector, "step": 3}
    again = unpack(mixed)
    assert jax.tree.structure(again) == jax.tree.structure({"packed": tree, "step": 3})
    jax.tree.map(np.testing.assert_array_equal, again["packed"], tree)
    back = pack_as(again, mixed)
    assert jax.tree.structure(back) == jax.tree.structure(mixed)
    np.testing.assert_array_equal(back["packed"].values, vector.values)
    assert pack({}) == {}


def test_packing_is_the_same_inside_and_outside_of_a_program() -> None:
    weights, _ = _supernet()[1].init(jax.random.key(0))
    inside = jax.jit(pack)(weights)
    np.testing.assert_array_equal(inside.values, pack(weights).values)
    for tree in (jax.jit(unpack)(inside), unpack(inside)):
        jax.tree.map(np.testing.assert_array_equal, tree, weights)


def test_where_a_state_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("darts_jax.models.packing.native", lambda: False)
    model = _supernet()[1]
    assert packed(model) is model
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert packed(model) is not model


@pytest.mark.parametrize("kind", ["search", "retrain"])
def test_a_packed_model_begins_with_and_computes_the_same(
    kind: str, float64: None, rng: np.random.Generator
) -> None:
    if kind == "search":
        space, model = _supernet()
        shape = (space.num_edges, len(space.primitives))
        alphas = {k: jnp.asarray(rng.normal(size=shape)) for k in space.cell_kinds}
        rest: Any = (alphas,)
        extra: Any = {}
    else:
        genotype = Genotype.from_json(zoo.entry("DARTS_V2")["genotype"])
        sizes = {"num_classes": 4, "num_cells": 3, "channels": 2}
        model = make_network(genotype, image_shape=IMAGE, **sizes)
        rest, extra = (), {"drop_path": 0.3}
    images = jnp.asarray(rng.normal(size=(3, *IMAGE)))
    states = {"plain": model.init(jax.random.key(0))}
    states["packed"] = packed(model).init(jax.random.key(0))
    jax.tree.map(
        np.testing.assert_array_equal, unpack(states["packed"]), states["plain"]
    )
    assert len(jax.tree.leaves(states["packed"])) == 2
    assert count_parameters(states["packed"][0]) == count_parameters(states["plain"][0])

    @functools.partial(jax.jit, static_argnames="train")
    def run(state: Any, train: bool) -> Any:
        weights, stats = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), state)

        def loss(weights: Any) -> Any:
            options = extra if train else {}
            logits, new = model.apply(
                weights,
                stats,
                images,
                *rest,
                train=train,
                key=jax.random.key(1),
                **options,
            )
            return jnp.sum(jnp.sin(logits)), (logits, new)

        return jax.value_and_grad(loss, has_aux=True)(weights)

    for train in (True, False):
        found = run(states["packed"], train)
        assert isinstance(found[1], Packed)  # the gradient, too
        assert_close(unpack(found), run(states["plain"], train))


@pytest.mark.parametrize("hypergradient", sorted(HYPERGRADIENTS))
def test_search_steps_of_packed_states_are_the_same(
    hypergradient: str, float64: None, rng: np.random.Generator
) -> None:
    space, model = _supernet()
    optimizers = Optimizers(
        weight_optimizer(0.1), weight_optimizer(0.1, clip=0), alpha_optimizer(0.01)
    )
    strategy = ONE_SHOT["darts"]
    batches = [
        Batch(jnp.asarray(rng.normal(size=(4, *IMAGE))), jnp.arange(4)) for _ in "tv"
    ]
    results = []
    for each in (packed(model), model):
        state = initial_search_state(
            each, strategy, space, optimizers, jax.random.key(0), alpha_scale=0.1
        )
        exact = jax.tree.map(
            lambda x: jnp.asarray(x, jnp.float64) if x.dtype == jnp.float32 else x,
            state._replace(key=None),
        )._replace(key=state.key)
        step = jax.jit(
            make_search_step(
                each, strategy, space, optimizers, HYPERGRADIENTS[hypergradient]
            )
        )
        for _ in range(2):  # momentum counts in the second
            exact, metrics = step(exact, *batches)
        results.append((unpack(exact._replace(key=None)), metrics))
    assert_close(*results, tolerance=1e-8)
