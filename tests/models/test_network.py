"""The derived network: drop path, auxiliary head, image sizes, and what it refuses."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darts_jax import zoo
from darts_jax.errors import UserError
from darts_jax.genotype import CellGenotype, Genotype
from darts_jax.models import make_network
from darts_jax.models.initial import initial_weights
from darts_jax.models.layers import BatchNorm
from darts_jax.models.model import apply_with_outputs
from darts_jax.models.network import DerivedCell, drop_path, path_scales
from darts_jax.spaces import SPACES, random_genotype

V2 = zoo.load("DARTS_V2")
SMALL = {"num_classes": 5, "num_cells": 3, "channels": 4}
BATCH = 64


def _cell(*edges: tuple[str, int]) -> CellGenotype:
    return CellGenotype((edges,), (2,))


def _logits_shape(model: Any, image: tuple[int, ...], train: bool) -> Any:
    weights, stats = jax.eval_shape(model.init, jax.random.key(0))
    images = jnp.zeros((2, *image))
    apply = functools.partial(model.apply, train=train)
    return jax.tree.map(
        lambda x: x.shape, jax.eval_shape(apply, weights, stats, images)
    )[0]


# --- drop path


def _dropped(x: jax.Array, probability: float) -> jax.Array:
    scales = path_scales(jax.random.key(0), probability, (x.shape[1],))
    return drop_path(x, scales)


def test_drop_path_drops_whole_samples_and_scales_the_others() -> None:
    x = jnp.ones((3, 20_000, 2, 1))
    y = np.asarray(jax.jit(_dropped)(x, 0.3))
    kept = y[0, :, 0, 0] != 0
    np.testing.assert_array_equal(y, np.broadcast_to(y[:1, :, :1], y.shape))
    np.testing.assert_allclose(y[0, kept, 0, 0], 1 / 0.7, rtol=1e-6)
    error = np.sqrt(0.3 * 0.7 / kept.size)
    assert abs(kept.mean() - 0.7) < 5 * error
    assert abs(y.mean() - 1) < 5 * error / 0.7


def test_drop_path_of_probability_zero_is_the_identity() -> None:
    x = jax.random.normal(jax.random.key(1), (2, 8, 3, 3))
    np.testing.assert_array_equal(_dropped(x, 0.0), x)


@pytest.fixture
def run_cell(rng: np.random.Generator) -> Any:
    """`run(cell, probability) -> [C, B, H, W]` of one cell on two given inputs."""
    inputs = [
        jnp.asarray(rng.normal(size=(4, BATCH, 4, 4)), jnp.float32) for _ in range(2)
    ]

    def run(
        cell: CellGenotype,
        probability: float | None,
        *,
        reduction: bool = False,
        train: bool = True,
    ) -> np.ndarray:
        norm = functools.partial(BatchNorm, affine=True)
        module = DerivedCell(cell, 4, reduction, False, norm)
        bound = functools.partial(
            module.init_with_output, drop_path_probability=None, train=True
        )
        key = jax.random.key(0)
        variables = jax.eval_shape(bound, key, *inputs)[1]
        stats = jax.tree.map_with_path(
            lambda path, s: jnp.full(s.shape, float(path[-1].key == "var")),
            variables["batch_stats"],
        )
        apply = jax.jit(
            functools.partial(module.apply, train=train, mutable=["batch_stats"])
        )
        y, _ = apply(
            {
                "params": initial_weights(key, variables["params"]),
                "batch_stats": stats,
            },
            *inputs,
            drop_path_probability=probability,
            rngs={"drop_path": jax.random.key(2)},
        )
        return np.asarray(y)

    return run


def test_the_identity_is_never_dropped(run_cell: Any) -> None:
    cell = _cell(("skip_connect", 0), ("skip_connect", 1))
    np.testing.assert_array_equal(run_cell(cell, 0.9), run_cell(cell, None))


@pytest.mark.parametrize(
    ("primitive", "reduction"),
    [("skip_connect", True), ("max_pool_3x3", False), ("sep_conv_3x3", False)],
)
def test_all_else_is_dropped_in_training(
    run_cell: Any, primitive: str, reduction: bool
) -> None:
    run = functools.partial(run_cell, reduction=reduction)
    cell = _cell((primitive, 0), (primitive, 1))
    whole, dropped = run(cell, None), run(cell, 0.5)
    none = (dropped == 0).all((0, 2, 3))
    both = (np.abs(dropped - 2 * whole) < 1e-4).all((0, 2, 3))
    # Two edges, two masks: a quarter each, not a half as with one mask for both.
    assert 6 <= none.sum() <= 26 and 6 <= both.sum() <= 26
    assert none.sum() + both.sum() < BATCH - 10
    np.testing.assert_array_equal(
        run(cell, 0.5, train=False), run(cell, None, train=False)
    )


def test_drop_path_follows_the_key_and_takes_a_traced_probability() -> None:
    genotype = Genotype(
        "darts", {kind: _cell(("max_pool_3x3", 0)) for kind in ("normal", "reduce")}
    )
    size = SMALL | {"num_cells": 1}
    model = make_network(genotype, image_shape=(8, 8, 3), **size)
    weights, stats = model.init(jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (8, 8, 8, 3))

    @jax.jit
    def logits(probability: jax.Array, seed: jax.Array) -> Any:
        key = jax.random.key(seed)
        apply = functools.partial(model.apply, weights, stats, images, train=True)
        return apply(key=key, drop_path=probability)[0], apply(key=key)[0]

    at_zero, without = logits(0.0, 1)
    np.testing.assert_allclose(at_zero, without, atol=1e-5)
    first, again, other = (logits(0.5, seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


# --- auxiliary head


def test_the_auxiliary_head_answers_in_training_only() -> None:
    shape = (32, 32, 3)
    model = make_network(V2, image_shape=shape, auxiliary=True, **SMALL)
    assert _logits_shape(model, shape, True) == ((2, 5), (2, 5))
    assert _logits_shape(model, shape, False) == (2, 5)


@pytest.mark.parametrize(("num_cells", "last"), [(3, 2), (5, 3), (6, 4), (20, 13)])
def test_the_auxiliary_head_stands_at_two_thirds(num_cells: int, last: int) -> None:
    shape, size = (32, 32, 3), SMALL | {"num_cells": num_cells}
    model = make_network(V2, image_shape=shape, auxiliary=True, **size)
    weights, stats = jax.eval_shape(model.init, jax.random.key(0))
    names = ("auxiliary", *(f"cell{i}" for i in range(num_cells)))
    apply = functools.partial(apply_with_outputs(model, names), train=True)
    called: list[str] = []

    def run(*arguments: Any) -> Any:
        logits, _, outputs = apply(*arguments)
        called.extend(outputs)
        return logits

    jax.eval_shape(run, weights, stats, jnp.zeros((2, *shape)))
    assert called[called.index("auxiliary") - 1] == f"cell{last}"
    assert len(called) == num_cells + 1


@pytest.mark.parametrize(
    ("stem", "smallest"), [("cifar", 29), ("imagenet", 193)], ids=["cifar", "imagenet"]
)
def test_images_too_small_for_the_auxiliary_head(stem: str, smallest: int) -> None:
    build = functools.partial(make_network, V2, stem=stem, auxiliary=True, **SMALL)
    shape = (smallest, smallest + 8, 3)
    model = build(image_shape=shape)
    assert _logits_shape(model, shape, True) == ((2, 5), (2, 5))
    small = (smallest + 8, smallest - 1, 3)
    with pytest.raises(UserError, match=f"auxiliary.* {small[0]}x{small[1]} give"):
        build(image_shape=small)
    without = make_network(V2, image_shape=small, stem=stem, **SMALL)
    assert _logits_shape(without, small, True) == (2, 5)


@pytest.mark.parametrize("num_cells", [1, 2, 4])
def test_the_check_knows_the_depth_of_the_head(num_cells: int) -> None:
    size = {"num_classes": 5, "num_cells": num_cells, "channels": 4}
    accepted = []
    for pixels in (14, 15, 28, 29):
        shape = (pixels, pixels, 3)
        try:
            model = make_network(V2, image_shape=shape, auxiliary=True, **size)
        except UserError:
            continue
        assert _logits_shape(model, shape, True) == ((2, 5), (2, 5))
        accepted.append(pixels)
    # One reduction at or before the head in one cell, else two.
    assert accepted == ([15, 28, 29] if num_cells == 1 else [29])


# --- what it builds


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize("image", [(7, 9, 3), (10, 6, 1)])
def test_odd_image_sizes(stem: str, image: tuple[int, int, int]) -> None:
    model = make_network(V2, image_shape=image, stem=stem, **SMALL)
    assert _logits_shape(model, image, True) == (2, 5)


# Repeated sources, a 7x1 convolution, a concat of few nodes, nodes without an edge.
@pytest.mark.parametrize("name", ["NASNet_A", "AmoebaNet_A", "FairDARTS_A"])
def test_unusual_cells_build(name: str) -> None:
    model = make_network(zoo.load(name), image_shape=(9, 9, 3), **SMALL)
    assert _logits_shape(model, (9, 9, 3), True) == (2, 5)


@pytest.mark.parametrize("name", ["tiny", "darts_s4", "nas_bench_201"])
def test_a_random_genotype_builds(name: str) -> None:
    genotype = random_genotype(SPACES[name](), np.random.default_rng(0))
    model = make_network(genotype, image_shape=(9, 7, 3), **SMALL)
    assert _logits_shape(model, (9, 7, 3), True) == (2, 5)


def test_a_step_keeps_the_types_of_the_statistics() -> None:
    """Else the second step of a training would compile again."""
    model = make_network(V2, image_shape=(8, 8, 3), **SMALL)
    weights, stats = jax.eval_shape(model.init, jax.random.key(0))
    apply = functools.partial(model.apply, train=True)
    _, after = jax.eval_shape(apply, weights, stats, jnp.zeros((2, 8, 8, 3)))
    assert jax.tree.map(
        lambda x: (x.shape, x.dtype, getattr(x, "weak_type", False)), after
    ) == (
        jax.tree.map(
            lambda x: (x.shape, x.dtype, getattr(x, "weak_type", False)), stats
        )
    )


# --- what it refuses


def _nas_bench_201() -> Genotype:
    return random_genotype(SPACES["nas_bench_201"](), np.random.default_rng(0))


@pytest.mark.parametrize(
    ("genotype", "options", "message"),
    [
        (V2, {"stem": "imagnet"}, "unknown model.stem 'imagnet'; did you mean"),
        (_nas_bench_201(), {"auxiliary": True}, "model.auxiliary=True needs the darts"),
        (
            _nas_bench_201(),
            {"stem": "imagenet"},
            "model.stem='imagenet' needs the darts",
        ),
        (
            Genotype("darts", {"normal": V2.cells["normal"]}),
            {},
            "no 'reduce' cell; needed: ",
        ),
        (
            Genotype("nas_bench_201", {"normal": V2.cells["normal"]}),
            {},
            "no 'cell' cell",
        ),
        (
            Genotype(
                "darts",
                {
                    "normal": V2.cells["normal"],
                    "reduce": CellGenotype(((("skip_connect", 0),),), (1,), 1),
                },
            ),
            {},
            "the reduce cell has 1 inputs; darts needs 2",
        ),
        (
            Genotype(
                "nas_bench_201",
                {
                    "cell": CellGenotype(
                        ((("skip_connect", 0),), (("skip_connect", 1),)), (1, 2), 1
                    )
                },
            ),
            {},
            r"concatenates the states \[1, 2\]; nas_bench_201 needs a single one",
        ),
    ],
)
def test_a_genotype_or_option_that_does_not_fit(
    genotype: Genotype, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make_network(genotype, image_shape=(32, 32, 3), **SMALL, **options)
