"""bfloat16 compute, rematerialised cells, batch norm by parts: what they may change."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darts_jax.bilevel import unrolled
from darts_jax.errors import UserError
from darts_jax.models import make_network, make_supernet
from darts_jax.models.layers import BatchNorm
from darts_jax.spaces import SPACES, random_genotype
from darts_jax.types import Batch, Model

PRIMITIVES = ("none", "avg_pool_3x3", "skip_connect", "dil_conv_3x3")
SPACE = SPACES["tiny"](num_nodes=1, primitives=PRIMITIVES)
NB201 = SPACES["nas_bench_201"]()
IMAGE, CLASSES, SIZE = (8, 8, 3), 5, 6


def supernet(**options: Any) -> Model:
    sizes = {"num_classes": CLASSES, "num_cells": 2, "channels": 2, **options}
    return make_supernet(SPACE, image_shape=IMAGE, **sizes)


def network(**options: Any) -> Model:
    genotype = random_genotype(SPACE, np.random.default_rng(0))
    sizes = {"num_classes": CLASSES, "num_cells": 2, "channels": 2, **options}
    return make_network(genotype, image_shape=IMAGE, **sizes)


def edge_weights(space: Any, dtype: Any = jnp.float32) -> dict[str, jax.Array]:
    rng = np.random.default_rng(3)
    shape = (len(space.edges), len(space.primitives))
    return {
        kind: jax.nn.softmax(jnp.asarray(rng.normal(size=shape), dtype))
        for kind in space.cell_kinds
    }


def batch(dtype: Any = jnp.float32, size: int = SIZE) -> Batch:
    rng = np.random.default_rng(1)
    images = jnp.asarray(rng.normal(size=(size, *IMAGE)), dtype)
    return Batch(images, jnp.asarray(rng.integers(0, CLASSES, size), jnp.int32))


def loss_of(model: Model) -> Any:
    """Returns `loss(weights, rest, batch) -> (value, (stats, logits))`; rest goes to apply."""

    def loss(weights: Any, rest: Any, some: Batch, stats: Any) -> Any:
        logits, new = model.apply(
            weights, stats, some.images, *rest, train=True, key=jax.random.key(2)
        )
        every = logits if isinstance(logits, tuple) else (logits,)
        picked = [jax.nn.log_softmax(y)[jnp.arange(SIZE), some.labels] for y in every]
        return -sum(p.mean() for p in picked), (new, logits)

    return loss


def value_and_gradients(model: Model, rest: Any, dtype: Any) -> Any:
    weights, stats = model.init(jax.random.key(0))
    exact = partial(jax.tree.map, lambda leaf: leaf.astype(dtype))
    loss = loss_of(model)

    @jax.jit
    def run(weights: Any, stats: Any, rest: Any, some: Batch) -> Any:
        return jax.value_and_grad(loss, (0, 1), has_aux=True)(
            weights, rest, some, stats
        )

    some = batch(dtype if dtype == jnp.float64 else jnp.float32)
    return run(exact(weights), exact(stats), rest, some)


@pytest.fixture
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def assert_equal(found: Any, wanted: Any, rtol: float = 1e-10) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-11)


def distance(found: Any, wanted: Any) -> float:
    """The distance of two trees over the norm of the second."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    difference = [(np.float64(x) - np.float64(y)) for x, y in pairs]
    whole = [np.float64(y) for y in jax.tree.leaves(wanted)]
    norm = [np.sqrt(sum((v**2).sum() for v in some)) for some in (difference, whole)]
    return norm[0] / norm[1]


MODELS = {
    "supernet": (supernet, (edge_weights(SPACE),)),
    "merged": (partial(supernet, implementation="merged"), (edge_weights(SPACE),)),
    "network": (network, ()),
}


@pytest.mark.parametrize("kind", sorted(MODELS))
def test_bfloat16_is_near_float32_and_leaves_all_that_lasts_in_float32(
    kind: str,
) -> None:
    """bfloat16 has 8 bits: 0.4 % a rounding, through a dozen layers a few per cent."""
    build, rest = MODELS[kind]
    (exact, (stats, logits)), grads = value_and_gradients(build(), rest, jnp.float32)
    (value, (new, low)), low_grads = value_and_gradients(
        build(precision="bfloat16"), rest, jnp.float32
    )
    for leaf in jax.tree.leaves((value, new, low, low_grads)):
        assert leaf.dtype == jnp.float32
    assert 1e-4 < distance(low, logits) < 0.05
    assert distance(new, stats) < 0.02
    assert abs(value - exact) < 0.02 * abs(exact)
    assert 1e-4 < distance(low_grads[0], grads[0]) < 0.25


def test_bfloat16_activations_are_short_wherever_they_are_stored() -> None:
    """What the backward pass keeps of the cells takes about half the memory."""
    rest = (edge_weights(SPACE),)

    def stored(precision: str) -> dict[Any, int]:
        model = supernet(precision=precision)
        weights, stats = jax.eval_shape(model.init, jax.random.key(0))

        def loss(weights: Any) -> Any:
            return loss_of(model)(weights, rest, batch(), stats_of(stats))[0]

        sizes: dict[Any, int] = {}
        residuals = jax.eval_shape(lambda w: jax.vjp(loss, w)[1], weights)
        for leaf in jax.tree.leaves(residuals):
            sizes[leaf.dtype] = sizes.get(leaf.dtype, 0) + leaf.size
        return sizes

    def stats_of(shapes: Any) -> Any:
        return jax.tree.map(lambda s: jnp.ones(s.shape, s.dtype), shapes)

    assert jnp.dtype(jnp.bfloat16) not in stored("float32")
    assert stored("bfloat16")[jnp.dtype(jnp.bfloat16)] > 0


@pytest.mark.slow
def test_bfloat16_of_nas_bench_201_and_heads() -> None:
    sizes = {"image_shape": IMAGE, "num_classes": CLASSES, "channels": 2}
    model = make_supernet(NB201, num_cells=1, precision="bfloat16", **sizes)
    rest = (edge_weights(NB201),)
    (_, (stats, logits)), grads = value_and_gradients(model, rest, jnp.float32)
    for leaf in jax.tree.leaves((stats, logits, grads)):
        assert leaf.dtype == jnp.float32 and np.isfinite(leaf).all()
    image = (32, 32, 3)
    model = make_network(
        random_genotype(SPACE, np.random.default_rng(0)),
        image_shape=image,
        num_classes=CLASSES,
        num_cells=3,
        channels=2,
        auxiliary=True,
        precision="bfloat16",
    )
    weights, stats = model.init(jax.random.key(0))
    outputs, _ = model.apply(
        weights, stats, jnp.ones((2, *image)), train=True, drop_path=0.2
    )
    assert [y.dtype for y in outputs] == [jnp.float32, jnp.float32]
    logits, _ = model.apply(weights, stats, jnp.ones((2, *image)), train=False)
    assert logits.dtype == jnp.float32


@pytest.mark.parametrize("kind", sorted(MODELS))
@pytest.mark.usefixtures("float64")
def test_remat_changes_nothing(kind: str) -> None:
    """The same weights, values, gradients and statistics, with the same random paths."""
    build = MODELS[kind][0]
    rest: Any = (edge_weights(SPACE, jnp.float64),)
    if kind == "network":
        rest = (jnp.float64(0.3),)  # drop path
    assert_equal(
        build(remat=True).init(jax.random.key(5)), build().init(jax.random.key(5)), 0
    )
    plain, again = (
        value_and_gradients(build(remat=remat), rest, jnp.float64)
        for remat in (False, True)
    )
    assert_equal(again, plain)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_remat_of_the_exact_hypergradient() -> None:
    alphas = edge_weights(SPACE, jnp.float64)
    found = []
    for remat in (False, True):
        model = supernet(remat=remat)
        weights, stats = model.init(jax.random.key(0))
        weights = jax.tree.map(lambda w: w.astype(jnp.float64), weights)

        def loss(
            weights: Any, alphas: Any, some: Batch, model=model, stats=stats
        ) -> Any:
            value, (new, _) = loss_of(model)(weights, (alphas,), some, stats)
            return value, new

        def step(weights: Any, grads: Any) -> Any:
            return jax.tree.map(lambda w, g: w - 0.1 * g, weights, grads)

        run = jax.jit(partial(unrolled, loss, step))
        some = batch(jnp.float64)
        found.append(run(weights, alphas, some, some).alphas)
    assert_equal(*found)


def test_remat_keeps_less() -> None:
    """Of a deeper network: the compiler's own plan of the memory of a gradient."""
    taken = {}
    for remat in (False, True):
        model = network(num_cells=6, channels=8, remat=remat)
        weights, stats = jax.eval_shape(model.init, jax.random.key(0))

        def residuals(weights: Any, stats: Any, model: Model = model) -> Any:
            return jax.vjp(lambda w: loss_of(model)(w, (), batch(), stats)[0], weights)[
                1
            ]

        kept = jax.eval_shape(residuals, weights, stats)
        taken[remat] = sum(leaf.size for leaf in jax.tree.leaves(kept))
    assert taken[True] < 0.5 * taken[False]


@pytest.mark.usefixtures("float64")
def test_group_norm_is_batch_norm_of_each_part() -> None:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 3, 6, 4, 4)))
    variables = {
        "params": {"scale": jnp.full((2, 3), 1.5), "bias": jnp.full((2, 3), -0.2)},
        "batch_stats": {"mean": jnp.full((2, 3), 0.7), "var": jnp.full((2, 3), 2.0)},
    }

    def run(x: jax.Array, groups: int) -> Any:
        norm = BatchNorm(groups=groups)
        return norm.apply(variables, x, train=True, mutable=["batch_stats"])

    y, updated = run(x, 3)
    parts = [run(x[:, :, 2 * i : 2 * i + 2], 1) for i in range(3)]
    assert_equal(y, jnp.concatenate([y for y, _ in parts], 2))
    wanted = jax.tree.map(lambda *leaves: sum(leaves) / 3, *(s for _, s in parts))
    assert_equal(updated, wanted)
    assert distance(y, run(x, 1)[0]) > 0.01
    direction = jnp.asarray(rng.normal(size=x.shape))
    weights = jnp.asarray(rng.normal(size=x.shape))

    def value(t: Any) -> jax.Array:
        return (run(x + t * direction, 3)[0] * weights).sum()

    slope = (value(1e-5) - value(-1e-5)) / 2e-5
    assert jax.grad(value)(0.0) == pytest.approx(float(slope), rel=1e-7)


def test_groups_must_divide_the_batch() -> None:
    model = network(norm_groups=4)
    weights, stats = jax.eval_shape(model.init, jax.random.key(0))
    with pytest.raises(UserError, match="groups=4 does not divide a batch of 6"):
        jax.eval_shape(
            lambda w, s: model.apply(w, s, batch().images, train=True), weights, stats
        )


@pytest.mark.usefixtures("float64")
def test_accumulating_parts_equals_their_groups() -> None:
    """Parts one after another and groups side by side normalise alike."""
    from darts_jax.training.accumulation import accumulated

    some = batch(jnp.float64)
    # Accumulation takes every second example; groups are contiguous.
    order = np.array([0, 2, 4, 1, 3, 5])
    sorted_batch = jax.tree.map(lambda a: a[order], some)
    outcomes = []
    for groups, parts, given in ((2, 1, sorted_batch), (1, 2, some)):
        model = network(norm_groups=groups)
        weights, stats = model.init(jax.random.key(0))
        weights = jax.tree.map(lambda w: w.astype(jnp.float64), weights)

        def loss(weights: Any, some: Batch, part: Any = None, model=model, stats=stats):
            logits, new = model.apply(weights, stats, some.images, train=True)
            log = jax.nn.log_softmax(logits)
            picked = jnp.take_along_axis(log, some.labels[:, None], 1)
            return -picked.mean(), new

        step = jax.jit(jax.value_and_grad(accumulated(loss, parts), has_aux=True))
        outcomes.append(step(weights, given))
    assert_equal(*outcomes)


def test_second_order_of_a_supernet_accumulates() -> None:
    """In a loop a `custom_jvp` would lose its rule, and a kernel has no other."""
    from darts_jax.training.accumulation import accumulated

    model, some, weighted = supernet(num_cells=1), batch(), edge_weights(SPACE)
    weights, stats = model.init(jax.random.key(0))

    def loss(weights: Any, mixing: Any, some: Batch, part: Any = None) -> jax.Array:
        logits, _ = model.apply(weights, stats, some.images, mixing, train=True)
        log = jax.nn.log_softmax(logits)
        return -jnp.take_along_axis(log, some.labels[:, None], 1).mean()

    def mean_of_parts(weights: Any, mixing: Any, some: Batch) -> jax.Array:
        halves = [Batch(some.images[i::2], some.labels[i::2]) for i in range(2)]
        return sum(loss(weights, mixing, half) for half in halves) / 2

    def through_a_step(loss: Any) -> Any:
        def after(mixing: Any) -> jax.Array:
            gradient = jax.grad(loss)(weights, mixing, some)
            moved = jax.tree.map(lambda w, g: w - 0.1 * g, weights, gradient)
            return loss(moved, mixing, some)

        return jax.jit(jax.grad(after))(weighted)["reduce"]

    found, wanted = map(through_a_step, (accumulated(loss, 2), mean_of_parts))
    assert np.abs(wanted).max() > 1e-3
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5)
