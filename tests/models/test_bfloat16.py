"""bfloat16: what stays in float32 (sums, moments, what lasts) and what does not."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darts_jax.bilevel import unrolled
from darts_jax.errors import UserError
from darts_jax.models import depthwise, make_network, make_supernet
from darts_jax.models.layers import BatchNorm
from darts_jax.models.normalise import weighted
from darts_jax.models.supernet import MixedEdges
from darts_jax.spaces import SPACES, random_genotype
from darts_jax.types import Batch, Model

SPACE = SPACES["tiny"](num_nodes=1)
NB201 = SPACES["nas_bench_201"](
    num_nodes=2, primitives=("none", "skip_connect", "nor_conv_1x1", "avg_pool_3x3")
)
SIZE = {"image_shape": (8, 8, 3), "num_classes": 5, "num_cells": 2, "channels": 2}


def edge_weights(space: Any) -> dict[str, jax.Array]:
    draw = np.random.default_rng(3).normal
    shape = (space.num_edges, len(space.primitives))
    return {k: jax.nn.softmax(jnp.asarray(draw(size=shape))) for k in space.cell_kinds}


def images(number: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).normal(size=(number, *shape)))


def start(model: Model, seed: int = 0) -> Any:
    """Weights and statistics in the widest type that is on."""
    found = model.init(jax.random.key(seed))
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(float)), found)


def distance(found: Any, wanted: Any) -> float:
    """The distance of two trees over the norm of the second."""
    flat = [
        np.concatenate([np.float64(leaf).ravel() for leaf in jax.tree.leaves(tree)])
        for tree in (found, wanted)
    ]
    return float(np.linalg.norm(flat[0] - flat[1]) / np.linalg.norm(flat[1]))


def test_a_gradient_of_edge_weights_is_summed_in_float32(
    rng: np.random.Generator,
) -> None:
    # A sum in bfloat16 would stop growing at a few hundred of its 131,072 terms.
    y = jnp.asarray(1 + rng.normal(size=(1, 8, 64, 16, 16)), jnp.bfloat16)
    gradient = jnp.asarray(1 + rng.normal(size=(2, *y.shape[1:])), jnp.bfloat16)
    _, pull_back = jax.vjp(lambda weight: weighted(weight, y), jnp.ones((2, 1)))
    (found,) = pull_back(gradient)
    wanted = (np.float64(gradient) * np.float64(y)).sum((1, 2, 3, 4))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found[:, 0], wanted, rtol=1e-3)


def test_bfloat16_of_edges_with_primitives_of_their_own(
    rng: np.random.Generator,
) -> None:
    """Five roundings of 0.4 % at most on each path, of all signs: 2 % is ample."""
    primitives = ("none", "max_pool_3x3", "skip_connect", "dil_conv_3x3", "noise")
    allowed = ((1, 1, 1, 1, 0), (1, 0, 0, 0, 0), (0, 1, 0, 1, 1))
    rows = tuple(tuple(bool(a) for a in row) for row in allowed)
    norm = functools.partial(BatchNorm, affine=False)
    module = MixedEdges(primitives, rows, 4, 1, norm, True, "fused")
    short = jnp.asarray(rng.normal(size=(4, 8, 6, 6)), jnp.bfloat16)
    weights = jnp.asarray(rng.uniform(0.2, 1, size=(3, 5)), jnp.float32)
    keys = {"params": jax.random.key(0), "noise": jax.random.key(1)}
    shapes = jax.eval_shape(lambda x: module.init(keys, x, weights, train=False), short)
    variables = jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s.shape), s.dtype), shapes
    )
    pull = jnp.asarray(rng.normal(size=(3, 4, 8, 6, 6)), jnp.float32)

    @jax.jit
    def run(x: jax.Array) -> Any:
        def value(weights: jax.Array, params: Any) -> Any:
            given = {**variables, "params": params}
            y, new = module.apply(
                given, x, weights, train=True, mutable=["batch_stats"], rngs=keys
            )
            return (y * pull).sum(), (y, new["batch_stats"])

        grads, (y, new) = jax.grad(value, (0, 1), has_aux=True)(
            weights, variables["params"]
        )
        return y, grads, new

    (y, low, stats), (whole, grads, new) = run(short), run(short.astype(jnp.float32))
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves((low, stats))} == {
        jnp.dtype(jnp.float32)
    }
    assert 1e-5 < distance(y, whole) < 0.02
    assert 1e-5 < distance(low[0], grads[0]) < 0.02
    assert 1e-5 < distance(low[1], grads[1]) < 0.02
    assert distance(stats, new) < 0.02


@pytest.mark.parametrize("kind", ["plain", "merged", "network"])
def test_what_bfloat16_keeps_for_the_gradient_is_bfloat16(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Off the CPU nothing as large as an activation stays in float32, so half is enough."""
    monkeypatch.setattr(depthwise, "kernels", lambda _: None)
    kept = {}
    for precision in ("float32", "bfloat16"):
        rest: tuple[Any, ...] = ()
        if kind != "network":
            model = make_supernet(
                SPACE, **SIZE, precision=precision, implementation=kind
            )
            rest = (edge_weights(SPACE),)
        else:
            genotype = random_genotype(SPACE, np.random.default_rng(0))
            model = make_network(genotype, **SIZE, precision=precision)
        x = images(64, 8, 8, 3)

        def residuals(weights: Any, stats: Any, model=model, rest=rest, x=x) -> Any:
            def value(weights: Any) -> jax.Array:
                return model.apply(weights, stats, x, *rest, train=True)[0].sum()

            return jax.vjp(value, weights)[1]

        sizes = {jnp.dtype(jnp.float32): 0, jnp.dtype(jnp.bfloat16): 0}
        for leaf in jax.tree.leaves(jax.eval_shape(residuals, *start(model))):
            if leaf.dtype in sizes:
                sizes[leaf.dtype] += leaf.size * leaf.dtype.itemsize
        kept[precision] = sizes
    assert not kept["float32"][jnp.dtype(jnp.bfloat16)]
    low = kept["bfloat16"]
    assert sum(low.values()) < 0.55 * sum(kept["float32"].values())
    # Merged operations keep sums' float32 arguments, which XLA then computes again.
    if kind != "merged":
        assert low[jnp.dtype(jnp.float32)] < 0.05 * low[jnp.dtype(jnp.bfloat16)]


def _with_auxiliary(**options: Any) -> tuple[Model, jax.Array, tuple[Any, ...]]:
    """The smallest network with an auxiliary head; its images and its drop path."""
    genotype = random_genotype(SPACE, np.random.default_rng(0))
    size = SIZE | {"image_shape": (16, 16, 3), "num_cells": 1}
    model = make_network(genotype, **size, auxiliary=True, **options)
    return model, images(4, 16, 16, 3), (jnp.full((), 0.3),)


def _nas_bench_201(**options: Any) -> tuple[Model, jax.Array, tuple[Any, ...]]:
    model = make_supernet(NB201, **SIZE | {"num_cells": 1}, **options)
    return model, images(4, 8, 8, 3), (edge_weights(NB201),)


@pytest.mark.parametrize("build", [_with_auxiliary, _nas_bench_201])
def test_bfloat16_logits_of_heads_and_skeletons(build: Any) -> None:
    """Some thirty roundings of 0.2 % on average: a per cent, and tiny batches' norms."""
    found = {}
    for precision in ("float32", "bfloat16"):
        model, x, rest = build(precision=precision)
        run = jax.jit(functools.partial(model.apply, train=True))
        found[precision] = run(*start(model), x, *rest)
        for leaf in jax.tree.leaves(found[precision]):
            assert leaf.dtype == jnp.float32
    low, wanted = (jax.tree.leaves(found[p][0]) for p in ("bfloat16", "float32"))
    assert len(low) == (2 if build is _with_auxiliary else 1)
    for logits, exact in zip(low, wanted, strict=True):
        assert 1e-5 < distance(logits, exact) < 0.05
    assert distance(found["bfloat16"][1], found["float32"][1]) < 0.02


def test_an_unknown_precision() -> None:
    with pytest.raises(UserError, match="unknown config.precision 'half'.*float32"):
        make_supernet(SPACE, **SIZE, precision="half")


@pytest.mark.slow
def test_the_exact_hypergradient_in_bfloat16(rng: np.random.Generator) -> None:
    """Through two gradients and their derivative: a few per cent each."""
    labels = jnp.asarray(rng.integers(0, 5, 8), jnp.int32)
    batches = [Batch(images(8, 8, 8, 3), labels), Batch(-images(8, 8, 8, 3), labels)]
    found = {}
    for precision in ("float32", "bfloat16"):
        model = make_supernet(SPACE, **SIZE, precision=precision)
        weights, stats = start(model)

        def loss(w: Any, alphas: Any, some: Batch, model=model, stats=stats) -> Any:
            mixed = jax.tree.map(jax.nn.softmax, alphas)
            logits, new = model.apply(w, stats, some.images, mixed, train=True)
            picked = jnp.take_along_axis(
                jax.nn.log_softmax(logits), some.labels[:, None], 1
            )
            return -picked.mean(), new

        def step(weights: Any, grads: Any) -> Any:
            return jax.tree.map(lambda w, g: w - 0.1 * g, weights, grads)

        run = jax.jit(functools.partial(unrolled, loss, step))
        found[precision] = run(weights, edge_weights(SPACE), *batches).alphas
    assert 1e-5 < distance(found["bfloat16"], found["float32"]) < 0.25
