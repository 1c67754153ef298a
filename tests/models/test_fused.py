"""The fused and the merged supernet are the plain one.

In values, gradients, statistics and hypergradients.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from darts_jax import zoo
from darts_jax.bilevel import HYPERGRADIENTS
from darts_jax.genotype import Genotype, parse_text
from darts_jax.kernels.compiled import kernels, why_not
from darts_jax.kernels.mixed import StageKernels
from darts_jax.models import batch_last, fused, make_network, make_supernet
from darts_jax.models.branches import mixing
from darts_jax.models.merged import ORDERS, choice, merged_mixed_branches
from darts_jax.models.normalise import batch_norm, plain_batch_norm
from darts_jax.one_shot import DARTS
from darts_jax.spaces import SPACES, Space
from darts_jax.training.metrics import cross_entropy
from darts_jax.training.optimizers import weight_optimizer
from darts_jax.types import Batch

native = pytest.mark.skipif(kernels() is None, reason=f"no kernels: {why_not()}")
# What there is beside the plain supernet.
OTHERS = ("merged",) if kernels() is None else ("fused", "merged")


def assert_close(found: Any, wanted: Any, tolerance: float = 1e-11) -> None:
    """Every leaf within `tolerance` of the largest number of its counterpart."""
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert a.shape == b.shape
        scale = max(1e-12, float(jnp.abs(b).max()))
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale)


# Edges, channels in and out, batch, image, stride: a batch of many tasks and one of a group
# that is not full; odd sizes; as many edges as one loop takes, and more; images of which the
# farthest taps see nothing. Where the numbers of channels are equal there are pools too.
SHAPES = [
    (3, 4, 4, 3, (7, 6), 1),
    (2, 3, 5, 2, (8, 8), 2),
    (5, 2, 2, 35, (4, 4), 1),
    (1, 6, 6, 5, (9, 7), 2),
    (4, 2, 2, 33, (33, 32), 1),
    (2, 3, 3, 35, (2, 2), 1),
    (2, 2, 3, 5, (4, 1), 2),
    # Batches of whole vectors: small images side by side in their lanes.
    (5, 2, 2, 16, (8, 8), 1),
    (2, 3, 2, 24, (7, 8), 2),
    (2, 2, 2, 8, (16, 15), 2),
    (1, 2, 2, 16, (2, 1), 1),
]
PRIMITIVES = ("sep_conv_3x3", "sep_conv_5x5", "dil_conv_5x5")
# Of NAS-Bench-201, and one of DARTS between them.
DENSE = ("nor_conv_3x3", "sep_conv_3x3", "nor_conv_1x1")


def _problem(
    shape: Any,
    rng: np.random.Generator,
    affine: bool = False,
    primitives: tuple[str, ...] = PRIMITIVES,
) -> tuple[Any, Any, Any]:
    """Operands, branches and the weights of a sum over the result."""
    edges, channels, out_channels, batch, image, stride = shape

    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape))

    chains = tuple(fused.stages_of(name, stride) for name in primitives)
    kernels = []
    for name, stages in zip(primitives, chains, strict=True):
        size, inputs, chain = int(name[-1]), channels, []
        for _ in stages:
            if name.startswith("nor"):
                kernel = StageKernels(draw(edges, size, size, inputs, out_channels))
            else:
                kernel = StageKernels(
                    draw(edges, size, size, inputs), draw(edges, inputs, out_channels)
                )
            if affine:
                kernel = kernel._replace(
                    scale=draw(edges, out_channels), shift=draw(edges, out_channels)
                )
            chain.append(kernel)
            inputs = out_channels
        kernels.append(tuple(chain))
    shared: tuple[fused.Shared, ...] = ()
    if channels == out_channels:
        shared = (fused.Shared("max_pool", True), fused.Shared("avg_pool", False))
        shared += (fused.Shared("identity", True),) * (stride == 1)
    out = (out_channels, batch, *(-(-length // stride) for length in image))
    operands = fused.Operands(
        draw(channels, batch, *image),
        draw(edges, len(primitives) + len(shared)),
        tuple(kernels),
    )
    return operands, fused.Branches(chains, shared, stride), draw(edges, *out)


# Of all shapes those of a search; of a derived network's norms one is enough. Dense
# convolutions have stride 1.
CASES = [
    *((shape, False, PRIMITIVES) for shape in SHAPES),
    (SHAPES[3], True, PRIMITIVES),
    *((shape, False, DENSE) for shape in SHAPES if shape[-1] == 1),
    ((5, 7, 9, 5, (3, 16), 1), True, DENSE),
    ((2, 5, 5, 7, (5, 8), 1), False, DENSE),
    ((3, 5, 5, 8, (3, 5), 1), False, DENSE),
    ((2, 3, 3, 5, (1, 1), 1), False, DENSE),
    ((3, 13, 13, 6, (5, 24), 1), False, DENSE),
]


FUNCTIONS = {
    "fused": fused.mixed_branches,
    "batch_first": functools.partial(merged_mixed_branches, order="batch_first"),
    "batch_last": functools.partial(merged_mixed_branches, order="batch_last"),
}
# Of the merged ones, which are plain operations, a case of each kind is enough.
MERGED = [
    *((shape, False, PRIMITIVES) for shape in (SHAPES[0], SHAPES[1], SHAPES[6])),
    (SHAPES[3], True, PRIMITIVES),
    ((5, 7, 9, 5, (3, 16), 1), True, DENSE),
]


@pytest.mark.parametrize(
    ("name", "shape", "affine", "primitives"),
    [
        *(pytest.param("fused", *case, marks=native) for case in CASES),
        *((order, *case) for order in ORDERS for case in MERGED),
    ],
)
def test_mixed_branches_and_its_first_two_derivatives(
    name: str,
    shape: Any,
    affine: bool,
    primitives: tuple[str, ...],
    float64: None,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batch_last, "PART", 16)  # small images in parts too
    operands, branches, weights = _problem(shape, rng, affine, primitives)
    direction = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), operands)

    def all_of(function: Any) -> Any:
        def value(operands: Any) -> Any:
            mixed, moments = function(operands, branches)
            # No derivative passes the moments, which are for the running statistics.
            moments = jax.lax.stop_gradient(moments)
            return jnp.sum(jnp.tanh(mixed) * weights), (mixed, moments)

        gradient = jax.grad(value, has_aux=True)
        return jax.jit(lambda a, b: jax.jvp(gradient, (a,), (b,)))(operands, direction)

    assert_close(all_of(FUNCTIONS[name]), all_of(fused.plain_mixed_branches))


@native
@pytest.mark.parametrize(
    ("shape", "primitives"),
    [
        ((3, 2, 3, 32, (8, 8), 2), PRIMITIVES),
        ((2, 3, 3, 48, (2, 5), 1), PRIMITIVES),
        ((3, 8, 8, 32, (8, 8), 1), DENSE),
        ((3, 8, 8, 5, (4, 32), 1), DENSE),
    ],
)
def test_single_precision(
    shape: Any, primitives: tuple[str, ...], rng: np.random.Generator
) -> None:
    # Its vectors have twice the lanes.
    operands, branches, weights = jax.tree.map(
        lambda x: x.astype(jnp.float32) if isinstance(x, jax.Array) else x,
        _problem(shape, rng, primitives=primitives),
    )

    def all_of(function: Any) -> Any:
        def value(operands: Any) -> Any:
            mixed, _ = function(operands, branches)
            return jnp.sum(jnp.tanh(mixed) * weights), mixed

        return jax.jit(jax.grad(value, has_aux=True))(operands)

    assert_close(all_of(fused.mixed_branches), all_of(fused.plain_mixed_branches), 1e-4)


@native
@pytest.mark.parametrize("other", ["float32", "float64", "bfloat16", "int32"])
@pytest.mark.parametrize("part", ["x", "weights", "kernels"])
def test_operands_of_different_types_are_promoted(
    part: str, other: str, float64: None, rng: np.random.Generator
) -> None:
    operands, branches, _ = _problem(SHAPES[1], rng)
    operands = jax.tree.map(lambda a: 4 * a.astype(jnp.float32), operands)
    changed = jax.tree.map(lambda a: a.astype(other), getattr(operands, part))
    operands = operands._replace(**{part: changed})
    found, moments = jax.jit(fused.mixed_branches, static_argnums=1)(operands, branches)
    exact = jax.tree.map(lambda a: a.astype(jnp.float64), operands)
    wanted = fused.plain_mixed_branches(exact, branches)
    assert found.dtype == (jnp.float64 if other == "float64" else jnp.float32)
    in_double = jax.tree.map(lambda a: a.astype(jnp.float64), (found, moments))
    assert_close(in_double, wanted, 2e-4)


@native
def test_a_nan_stays_one(rng: np.random.Generator) -> None:
    """A rectifier may not turn a run that diverged into constants."""
    operands, branches, _ = _problem(SHAPES[0], rng)
    operands = jax.tree.map(lambda a: a.astype(jnp.float32), operands)
    (first, second), *others = operands.kernels
    broken = first._replace(taps=first.taps.at[0].set(jnp.nan))
    operands = operands._replace(kernels=((broken, second), *others))
    mixed, _ = fused.mixed_branches(operands, branches)
    assert jnp.isnan(mixed[0]).all() and jnp.isfinite(mixed[1:]).all()


@native
def test_a_max_pool_gives_on_a_nan(rng: np.random.Generator) -> None:
    operands, branches, _ = _problem(SHAPES[0], rng)
    branches = branches._replace(
        chains=(), shared=(fused.Shared("max_pool", False),), stride=1
    )
    x = operands.x.astype(jnp.float32).at[0, 0, 0, 0].set(jnp.nan)
    weights = jnp.ones((len(operands.weights), 1), jnp.float32)
    mixed, _ = fused.mixed_branches(fused.Operands(x, weights, ()), branches)
    found = np.isnan(mixed[0, 0, 0])
    assert found[:2, :2].all() and found.sum() == found[:2, :2].size


@native
def test_every_mode_of_differentiation(float64: None, rng: np.random.Generator) -> None:
    operands, branches, weights = _problem(SHAPES[1], rng, affine=True)
    direction = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), operands)

    def all_of(function: Any) -> Any:
        def value(operands: Any) -> Any:
            return jnp.sum(jnp.tanh(function(operands, branches)[0]) * weights)

        def along(operands: Any) -> Any:
            return jax.jvp(value, (operands,), (direction,))[1]

        def squares(operands: Any) -> Any:
            gradient = jax.tree.leaves(jax.grad(value)(operands))
            return sum(jnp.sum(jnp.square(g)) for g in gradient)

        mapped = jax.vmap(lambda w: value(operands._replace(weights=w)))
        return jax.jit(
            lambda o: (
                along(o),  # forward
                jax.grad(along)(o),  # reverse over forward
                jax.jvp(along, (o,), (direction,))[1],  # forward over forward
                jax.grad(squares)(o),  # reverse over reverse
                jax.vmap(lambda d: jax.jvp(value, (o,), (d,))[1])(
                    jax.tree.map(lambda x: jnp.stack([x, 2 * x]), direction)
                ),
                mapped(jnp.stack([o.weights, -o.weights])),
                jax.grad(lambda w: jnp.sum(mapped(jnp.stack([w, 2 * w]))))(o.weights),
                jax.hessian(lambda w: value(o._replace(weights=w)))(o.weights),
            )
        )(operands)

    assert_close(all_of(fused.mixed_branches), all_of(fused.plain_mixed_branches), 1e-9)


@native
@pytest.mark.parametrize("of", [("weights",), ("x", "weights"), ("x",)])
def test_gradients_of_some_operands_are_those_of_all(
    of: tuple[str, ...], float64: None, rng: np.random.Generator
) -> None:
    # What is not differentiated by is left out of the backward call.
    operands, branches, weights = _problem(SHAPES[3], rng)

    def value(some: dict[str, Any]) -> jax.Array:
        mixed, _ = fused.mixed_branches(operands._replace(**some), branches)
        return jnp.sum(jnp.tanh(mixed) * weights)

    def gradient(names: tuple[str, ...]) -> Any:
        return jax.jit(jax.grad(value))({n: getattr(operands, n) for n in names})

    everything = gradient(fused.Operands._fields)
    # A call leaves out more the fewer operands there are; its sums are the same bits.
    for name, found in gradient(of).items():
        for a, b in zip(
            jax.tree.leaves(found), jax.tree.leaves(everything[name]), strict=True
        ):
            np.testing.assert_array_equal(a, b)


@native
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[3], SHAPES[7], SHAPES[9]])
def test_of_equal_numbers_the_first_takes_the_gradient(
    shape: Any, float64: None, rng: np.random.Generator
) -> None:
    operands, branches, weights = _problem(shape, rng)
    operands = operands._replace(x=jnp.round(operands.x))

    def gradient(function: Any) -> Any:
        def value(x: jax.Array) -> jax.Array:
            mixed, _ = function(operands._replace(x=x), branches)
            return jnp.sum(jnp.tanh(mixed) * weights)

        return jax.jit(jax.grad(value))(operands.x)

    assert_close(gradient(fused.mixed_branches), gradient(fused.plain_mixed_branches))


def test_what_fused_means_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert choice() == "batch_last"
    with monkeypatch.context() as several:
        several.setattr(jax, "device_count", lambda: 2)
        assert choice() == "batch_first"
    for dtype in (jnp.float32, jnp.bfloat16):
        assert mixing("fused", dtype, supernet=True) is merged_mixed_branches
        assert mixing("fused", dtype, supernet=False) is None
        assert mixing("plain", dtype, supernet=True) is None
        assert mixing("merged", dtype, supernet=False) is merged_mixed_branches


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", [pytest.param("fused", marks=native), *ORDERS])
def test_pools_without_chains(
    name: str, stride: int, float64: None, rng: np.random.Generator
) -> None:
    x = jnp.asarray(rng.integers(0, 3, (4, 3, 7, 6)).astype(np.float64))
    operands = fused.Operands(x, jnp.asarray(rng.normal(size=(3, 2))), ())
    shared = (fused.Shared("max_pool", True), fused.Shared("avg_pool", False))
    branches = fused.Branches((), shared, stride)
    weights = jnp.asarray(
        rng.normal(size=fused.plain_mixed_branches(operands, branches)[0].shape)
    )

    def gradient(function: Any) -> Any:
        def value(operands: Any) -> jax.Array:
            return jnp.sum(jnp.tanh(function(operands, branches)[0]) * weights)

        return jax.grad(value)(operands)

    assert_close(gradient(FUNCTIONS[name]), gradient(fused.plain_mixed_branches))


@native
def test_batch_norm_and_its_first_two_derivatives(
    float64: None, rng: np.random.Generator
) -> None:
    x = jnp.asarray(3 + rng.normal(size=(2, 3, 5, 7, 40)))
    scale, bias = jnp.asarray(rng.normal(size=(2, 2, 3)))
    weights = jnp.asarray(rng.normal(size=x.shape))
    direction = tuple(jnp.asarray(rng.normal(size=a.shape)) for a in (x, scale, bias))

    def all_of(function: Any) -> Any:
        def value(*arguments: Any) -> Any:
            y, *moments = function(*arguments)
            return jnp.sum(jnp.tanh(y) * weights), (y, moments)

        gradient = jax.grad(value, (0, 1, 2), has_aux=True)
        return jax.jvp(gradient, (x, scale, bias), direction)

    assert_close(all_of(batch_norm), all_of(plain_batch_norm))


def _normalised(x: jax.Array) -> Any:
    return batch_norm(x, jnp.ones((1, 2)), jnp.zeros((1, 2)))


def _merged_normalised(x: jax.Array) -> Any:
    operands = fused.Operands(x[0], jnp.ones((1, 1)), ())
    branches = fused.Branches((), (fused.Shared("identity", True),))
    mixed, (((mean, variance),),) = merged_mixed_branches(operands, branches)
    count = x[0, 0].size
    return mixed, mean, variance * ((count - 1) / count)


def test_moments_of_bfloat16(rng: np.random.Generator) -> None:
    x = jnp.asarray(30 + rng.normal(size=(1, 2, 8, 8, 8)), jnp.bfloat16)
    y, mean, variance = _merged_normalised(x)
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(mean[0], exact.mean((0, 2, 3, 4)), rtol=1e-6)
    np.testing.assert_allclose(variance[0], exact.var((0, 2, 3, 4)), rtol=1e-3)
    assert y.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    "normalise", [pytest.param(_normalised, marks=native), _merged_normalised]
)
def test_batch_norm_of_large_means(normalise: Any, rng: np.random.Generator) -> None:
    # A variance as the difference of two mean squares would have no correct digit here.
    x = (1e4 + rng.normal(size=(1, 2, 8, 8, 8))).astype(np.float32)
    y, mean, variance = normalise(jnp.asarray(x))
    exact = x.astype(np.float64)
    np.testing.assert_allclose(mean, exact.mean((2, 3, 4)), rtol=1e-6)
    np.testing.assert_allclose(variance, exact.var((2, 3, 4)), rtol=1e-4)
    centred = exact - exact.mean((2, 3, 4), keepdims=True)
    wanted = centred / np.sqrt(exact.var((2, 3, 4), keepdims=True) + 1e-5)
    np.testing.assert_allclose(y, wanted, atol=5e-3)  # numbers 1e-3 apart near 1e4


# All primitives, a subset on every edge, edges with primitives of their own, another skeleton.
SPACES_TO_COMPARE = {
    "darts": lambda: SPACES["darts"](num_nodes=2),
    "darts_s3": lambda: SPACES["darts_s3"](),
    "nas_bench_201": lambda: SPACES["nas_bench_201"](num_nodes=2),
}


def _supernets(space: Space, **size: Any) -> dict[str, Any]:
    base = {"image_shape": (8, 8, 3), "num_classes": 4, "num_cells": 1, "channels": 2}
    return {
        name: make_supernet(space, **base | size, implementation=name)
        for name in ("plain", *OTHERS)
    }


@pytest.mark.parametrize("name", SPACES_TO_COMPARE)
def test_supernets_agree(name: str, float64: None, rng: np.random.Generator) -> None:
    space = SPACES_TO_COMPARE[name]()
    models = _supernets(space)
    weights, stats = jax.tree.map(
        lambda x: x.astype(jnp.float64), models["plain"].init(jax.random.key(0))
    )
    shape = (space.num_edges, len(space.primitives))
    edge_weights = {
        kind: jnp.asarray(rng.uniform(size=shape)) for kind in space.cell_kinds
    }
    images = jnp.asarray(rng.normal(size=(3, 8, 8, 3)))
    results = {}
    for key, model in models.items():

        def loss(weights: Any, edge_weights: Any, apply: Any = model.apply) -> Any:
            logits, new = apply(weights, stats, images, edge_weights, train=True)
            return jnp.sum(jnp.sin(logits)), (logits, new)

        run = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
        tested = model.apply(weights, stats, images, edge_weights, train=False)
        results[key] = (run(weights, edge_weights), tested)
    for other in OTHERS:
        assert_close(results[other], results["plain"], 1e-10)


@pytest.mark.parametrize("hypergradient", HYPERGRADIENTS)
def test_hypergradients_agree(
    hypergradient: str, float64: None, rng: np.random.Generator
) -> None:
    space = SPACES["tiny"](
        primitives=(
            "none",
            "max_pool_3x3",
            "skip_connect",
            "sep_conv_3x3",
            "nor_conv_3x3",
        )
    )
    models = _supernets(space, image_shape=(8, 8, 1), num_classes=3)
    weights, stats = jax.tree.map(
        lambda x: x.astype(jnp.float64), models["plain"].init(jax.random.key(1))
    )
    shape = (space.num_edges, len(space.primitives))
    alphas = {kind: jnp.asarray(rng.normal(size=shape)) for kind in space.cell_kinds}
    batches = [
        Batch(jnp.asarray(rng.normal(size=(4, 8, 8, 1))), jnp.asarray([0, 1, 2, 1]))
        for _ in range(2)
    ]
    optimizer = weight_optimizer(0.1, clip=0)
    _, state = optimizer.update(weights, optimizer.init(weights), weights)

    def step(weights: Any, grads: Any) -> Any:
        updates, _ = optimizer.update(grads, state, weights)
        return optax.apply_updates(weights, updates)

    results = {}
    for key, model in models.items():

        def loss(
            weights: Any, alphas: Any, batch: Batch, apply: Any = model.apply
        ) -> Any:
            edge_weights = DARTS.relax(space, alphas)
            logits, new = apply(weights, stats, batch.images, edge_weights, train=True)
            return cross_entropy(logits, batch.labels).mean(), new

        chosen = functools.partial(HYPERGRADIENTS[hypergradient], loss, step)
        results[key] = jax.jit(lambda *a, chosen=chosen: chosen(*a).alphas)(
            weights, alphas, *batches
        )
    for other in OTHERS:
        assert_close(results[other], results["plain"], 1e-9)


DERIVED = {
    "darts": Genotype.from_json(zoo.entry("DARTS_V2")["genotype"]),
    "nas_bench_201": parse_text(
        "|nor_conv_3x3~0|+|nor_conv_1x1~0|avg_pool_3x3~1|+|skip_connect~0|none~1|nor_conv_3x3~2|"
    ),
}


@pytest.mark.parametrize("name", DERIVED)
def test_derived_networks_agree(
    name: str, float64: None, rng: np.random.Generator
) -> None:
    genotype = DERIVED[name]
    models = {
        implementation: make_network(
            genotype,
            image_shape=(8, 8, 3),
            num_classes=4,
            num_cells=3 if name == "darts" else 1,
            channels=2,
            implementation=implementation,
        )
        for implementation in ("plain", *OTHERS)
    }
    weights, stats = models["plain"].init(jax.random.key(0))
    # Scales and shifts of the norms that differ from 1 and 0.
    weights = jax.tree.map(
        lambda x: jnp.asarray(x + 0.1 * rng.normal(size=x.shape)), weights
    )
    stats = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), stats)
    images = jnp.asarray(rng.normal(size=(3, 8, 8, 3)))
    results = {}
    for key, model in models.items():

        def loss(weights: Any, apply: Any = model.apply) -> Any:
            logits, new = apply(
                weights,
                stats,
                images,
                train=True,
                # It drops an image of each last path: of those that drop none the shift has
                # no gradient through the next norm, only rounding errors.
                key=jax.random.key(0),
                drop_path=0.3,
            )
            return jnp.sum(jnp.sin(logits)), (logits, new)

        run = jax.jit(jax.value_and_grad(loss, has_aux=True))
        results[key] = (run(weights), model.apply(weights, stats, images, train=False))
    for other in OTHERS:
        assert_close(results[other], results["plain"], 1e-10)
