"""The supernet: every space builds, runs, counts and mixes as it should."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darts_jax.errors import UserError
from darts_jax.models import count_parameters, make_supernet
from darts_jax.models.model import apply_with_outputs
from darts_jax.models.supernet import MixedEdges
from darts_jax.spaces import SPACES, Space
from darts_jax.types import EdgeWeights, Model

# Per space what keeps it small: one node where the space allows it.
NUM_NODES = {"darts_s1": 4, "nas_bench_201": 2}
SIZE = {"image_shape": (7, 9, 3), "num_classes": 5, "num_cells": 1, "channels": 2}


def _space(name: str) -> Space:
    return SPACES[name](num_nodes=NUM_NODES.get(name, 1))


def _edge_weights(space: Space, seed: int = 0) -> EdgeWeights:
    """Random positive edge weights, on the primitives that an edge does not have too."""
    rng = np.random.default_rng(seed)
    shape = (space.num_edges, len(space.primitives))
    return {
        kind: rng.uniform(0.1, 1, shape).astype(np.float32) for kind in space.cell_kinds
    }


def _images(batch: int = 4, shape: tuple[int, ...] = (7, 9, 3)) -> np.ndarray:
    rng = np.random.default_rng(7)
    return rng.normal(size=(batch, *shape)).astype(np.float32)


@pytest.mark.parametrize("name", SPACES)
def test_a_space_builds_runs_and_has_gradients(name: str) -> None:
    space = _space(name)
    model = make_supernet(space, **SIZE)
    weights, stats = model.init(jax.random.key(0))
    images, edge_weights = _images(), _edge_weights(space)

    @jax.jit
    def run(weights: Any, edge_weights: EdgeWeights) -> Any:
        def loss(weights: Any, edge_weights: EdgeWeights) -> Any:
            logits, new = model.apply(weights, stats, images, edge_weights, train=True)
            return jnp.sum(jnp.sin(logits)), (logits, new)

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(weights, edge_weights)

    (_, (logits, new)), (dw, de) = run(weights, edge_weights)
    assert logits.shape == (4, 5)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((logits, new, dw, de)))
    signature = functools.partial(
        jax.tree.map, lambda x: (x.shape, x.dtype, getattr(x, "weak_type", False))
    )
    assert signature(new) == signature(stats)
    kinds = space.cell_kinds if name == "nas_bench_201" else ("reduce",)
    for kind in kinds:  # the one cell of a DARTS supernet of this size is a reduction
        felt = space.mask(kind) & np.array([op != "none" for op in space.primitives])
        if name != "nas_bench_201":
            assert (np.abs(de[kind]) > 0)[felt].all()
        np.testing.assert_array_equal(de[kind][~felt], 0)
    if name != "nas_bench_201":
        np.testing.assert_array_equal(de["normal"], 0)
    evaluated, kept = jax.eval_shape(
        functools.partial(model.apply, train=False),
        *(weights, stats, images, edge_weights),
    )
    assert evaluated.shape == (4, 5)
    assert jax.tree.structure(kept) == jax.tree.structure(stats)


@pytest.mark.parametrize("image", [(7, 9, 1), (1, 1, 3)])
@pytest.mark.parametrize("name", ["tiny", "nas_bench_201"])
def test_any_image_size(name: str, image: tuple[int, int, int]) -> None:
    space = _space(name)
    size = SIZE | {"image_shape": image, "num_cells": 3}
    model = make_supernet(space, **size)
    weights, stats = jax.eval_shape(model.init, jax.random.key(0))
    logits, _ = jax.eval_shape(
        functools.partial(model.apply, train=True),
        *(weights, stats, jnp.zeros((2, *image)), _edge_weights(space)),
    )
    assert logits.shape == (2, 5)


# --- parameters


def _operation_parameters(primitive: str, channels: int, stride: int) -> int:
    """Parameters of one primitive in the reference's search network (no affine norm)."""
    kind, _, size = primitive.partition("_conv_")
    if kind in ("sep", "dil"):
        once = int(size[0]) ** 2 * channels + channels**2
        return 2 * once if kind == "sep" else once
    return channels**2 if primitive == "skip_connect" and stride == 2 else 0


def _reference_parameters(space: Space, num_cells: int, channels: int) -> int:
    """Parameters of `model_search.Network(channels, 10, num_cells)`, edge by edge."""
    stem = 3 * channels
    total = 27 * stem + 2 * stem
    before, last = stem, stem  # channels of the two states before
    for i in range(num_cells):
        reduction = i in (num_cells // 3, 2 * num_cells // 3)
        channels *= 2 if reduction else 1
        total += channels * (before + last)
        kind = "reduce" if reduction else "normal"
        for e, (source, _) in enumerate(space.edges):
            stride = 2 if reduction and source < 2 else 1
            for primitive in space.allowed(kind, e):
                total += _operation_parameters(primitive, channels, stride)
        before, last = last, channels * len(space.concat)
    return total + last * 10 + 10


@pytest.mark.parametrize(
    "name", [name for name in SPACES if SPACES[name]().skeleton == "darts"]
)
def test_parameters_are_the_references(name: str) -> None:
    space = SPACES[name]()
    model = make_supernet(
        space, image_shape=(32, 32, 3), num_classes=10, num_cells=3, channels=6
    )
    weights, _ = jax.eval_shape(model.init, jax.random.key(0))
    assert count_parameters(weights) == _reference_parameters(space, 3, 6)


def test_the_formula_gives_the_published_numbers() -> None:
    assert _reference_parameters(SPACES["darts"](), 3, 4) == 72_854
    assert _reference_parameters(SPACES["darts"](), 5, 8) == 394_210
    assert _reference_parameters(SPACES["darts"](), 8, 16) == 1_930_618
    assert _reference_parameters(SPACES["darts"](), 20, 16) == 4_548_730


def test_primitives_that_an_edge_does_not_have_get_no_parameters() -> None:
    space = SPACES["darts_s1"]()
    model = make_supernet(space, **SIZE | {"num_cells": 3})
    weights, stats = jax.eval_shape(model.init, jax.random.key(0))
    for cell, kind in (("cell0", "normal"), ("cell1", "reduce")):
        mask, trained = space.mask(kind), 0
        for source in range(5):
            rows = [e for e, (start, _) in enumerate(space.edges) if start == source]
            counts = dict(zip(space.primitives, mask[rows].sum(0), strict=True))
            held = weights[cell].get(f"source{source}", {}) | {}
            for primitive, count in counts.items():
                leaves = jax.tree.leaves(held.pop(primitive, {}))
                leaves += jax.tree.leaves(
                    stats[cell].get(f"source{source}", {}).get(primitive, {})
                )
                assert all(leaf.shape[0] == count for leaf in leaves)
                if primitive.startswith(("sep", "dil")):
                    assert bool(leaves) == (count > 0)
                    trained += count
            assert not held  # nothing else
        assert trained > 0


# --- edge weights


def _mixed_edges(allowed: np.ndarray, primitives: tuple[str, ...]) -> MixedEdges:
    from darts_jax.models.layers import BatchNorm

    norm = functools.partial(BatchNorm, affine=False)
    rows = tuple(tuple(bool(a) for a in row) for row in allowed)
    return MixedEdges(primitives, rows, 4, 1, norm, True, "fused")


@pytest.fixture
def mixed(float64: None, rng: np.random.Generator) -> Any:
    """`mixed(edge_weights) -> [n, C, B, H, W]` of three edges, one of them all "none"."""
    primitives = ("none", "max_pool_3x3", "skip_connect", "dil_conv_3x3")
    allowed = np.array([[1, 1, 0, 1], [1, 0, 0, 0], [0, 1, 1, 1]], bool)
    module = _mixed_edges(allowed, primitives)
    x = rng.normal(size=(4, 2, 5, 6))
    variables = module.init(jax.random.key(0), x, np.ones((3, 4)), train=True)
    variables = jax.tree.map(lambda v: rng.normal(size=v.shape), variables)

    @jax.jit
    def apply(edge_weights: jax.Array) -> jax.Array:
        return module.apply(
            variables, x, edge_weights, train=True, mutable=["batch_stats"]
        )[0]

    return apply, allowed


def test_a_mixed_operation_is_linear_in_its_edge_weights(
    mixed: Any, rng: np.random.Generator
) -> None:
    apply, allowed = mixed
    a, b = rng.normal(size=(2, 3, 4))
    assert_close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-12)
    assert_close(apply(2 * a - b), 2 * apply(a) - apply(b))
    assert_close(
        apply(a), apply(np.where(allowed, a, 99.0))
    )  # what is not there has no say
    one_by_one = 0
    for e, o in np.argwhere(allowed):
        single = np.zeros((3, 4))
        single[e, o] = a[e, o]
        y = np.asarray(apply(single))
        assert not np.delete(y, e, 0).any()  # an edge feels its own weights only
        assert y.any() == (o != 0)  # "none" gives nothing
        one_by_one = one_by_one + y
    assert_close(one_by_one, apply(a))
    assert not np.asarray(apply(a))[1].any()


# --- keys


def _s4() -> tuple[Model, EdgeWeights]:
    space = SPACES["darts_s4"](num_nodes=1)
    return make_supernet(space, **SIZE), _edge_weights(space)


def test_noise_is_drawn_from_the_key_that_apply_is_given() -> None:
    model, edge_weights = _s4()
    weights, stats = model.init(jax.random.key(0))

    @jax.jit
    def logits(key: jax.Array) -> jax.Array:
        return model.apply(
            weights, stats, _images(), edge_weights, train=True, key=key
        )[0]

    first = logits(jax.random.key(1))
    np.testing.assert_array_equal(logits(jax.random.key(1)), first)
    assert np.abs(logits(jax.random.key(2)) - first).max() > 1e-3


def test_init_is_a_function_of_the_key() -> None:
    model, _ = _s4()
    first, again, other = (model.init(jax.random.key(seed)) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    differs = jax.tree.map(lambda a, b: bool((a != b).any()), first[0], other[0])
    assert not differs["stem_norm0"]["scale"]
    assert differs["stem_conv0"]["conv"] and differs["classifier"]["linear"]


@pytest.mark.parametrize("affine", [True, False])
def test_only_the_stem_may_be_affine(affine: bool) -> None:
    model = make_supernet(SPACES["tiny"](), **SIZE, stem_affine=affine)
    weights, _ = jax.eval_shape(model.init, jax.random.key(0))
    paths = [path for path, _ in jax.tree.flatten_with_path(weights)[0]]
    scaled = {path[0].key for path in paths if path[-1].key in ("scale", "bias")}
    assert scaled == ({"stem_norm0"} if affine else set())


def test_evaluation_by_batch_statistics_equals_training_mode() -> None:
    space = SPACES["tiny"](num_nodes=1)
    model = make_supernet(space, **SIZE, evaluation="batch")
    weights, stats = model.init(jax.random.key(0))
    run = jax.jit(functools.partial(model.apply), static_argnames="train")
    arguments = (weights, stats, _images(), _edge_weights(space))
    (trained, moved), (evaluated, kept) = (
        run(*arguments, train=train) for train in (True, False)
    )
    np.testing.assert_allclose(trained, evaluated, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, kept, stats)
    assert np.abs(moved["stem_norm0"]["mean"] - stats["stem_norm0"]["mean"]).max() > 0


def test_statistics_of_the_batch_in_the_cells_only() -> None:
    """As in NATS-Bench: what cells keep is not used, what stands outside is."""
    space = SPACES["nas_bench_201"](num_nodes=2)
    model = make_supernet(space, **SIZE, evaluation="batch_in_cells")
    weights, stats = model.init(jax.random.key(0))
    logits = functools.partial(model.apply, train=False)
    images, edge_weights = _images(), _edge_weights(space)
    at_first, _ = logits(weights, stats, images, edge_weights)
    for name, part in stats.items():
        moved = stats | {name: jax.tree.map(lambda leaf: leaf + 0.5, part)}
        found, _ = logits(weights, moved, images, edge_weights)
        unchanged = np.array_equal(found, at_first)
        assert unchanged == name.startswith("cell"), name


@pytest.mark.parametrize("edges", [1, 6])
def test_edge_weights_of_another_space_are_refused(edges: int) -> None:
    space = SPACES["tiny"](num_nodes=1)
    model = make_supernet(space, **SIZE)
    weights, stats = jax.eval_shape(model.init, jax.random.key(0))
    given = _edge_weights(space)
    given["reduce"] = np.ones((edges, len(space.primitives)), np.float32)
    for wrong in (given, {"normal": given["normal"]}):
        with pytest.raises(UserError, match="edge weights have the shapes"):
            model.apply(weights, stats, _images(), wrong, train=True)


def test_no_such_evaluation() -> None:
    with pytest.raises(UserError, match=r"unknown batch_norm.evaluation 'bath'"):
        make_supernet(SPACES["tiny"](), **SIZE, evaluation="bath")


def test_imagenet_stem_of_the_supernet() -> None:
    """Three convolutions of stride 2: cells at an eighth of the image, as PC-DARTS has it."""
    space = SPACES["darts"]()
    model = make_supernet(
        space,
        image_shape=(64, 64, 3),
        num_classes=1000,
        num_cells=8,
        channels=16,
        stem="imagenet",
    )
    weights, stats = jax.eval_shape(model.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    alphas = {k: jnp.ones((14, 8)) / 8 for k in space.cell_kinds}

    def outputs(weights: Any, stats: Any, images: Any) -> Any:
        run = apply_with_outputs(model, ("stem_norm1", "cell0", "cell7"))
        return run(weights, stats, images, alphas, train=False)

    logits, _, found = jax.eval_shape(outputs, weights, stats, images)
    assert logits.shape == (2, 1000)
    assert found["stem_norm1"].shape == (1, 16, 2, 16, 16)
    assert found["cell0"].shape == (64, 2, 8, 8)
    assert found["cell7"].shape == (256, 2, 2, 2)


def test_stem_that_a_skeleton_does_not_have() -> None:
    space = SPACES["nas_bench_201"]()
    sizes = {"image_shape": (8, 8, 3), "num_classes": 2, "num_cells": 1, "channels": 4}
    with pytest.raises(
        UserError, match="'imagenet' needs the darts skeleton, this is nas"
    ):
        make_supernet(space, stem="imagenet", **sizes)
    with pytest.raises(UserError, match="unknown model.stem 'imagnet'.*imagenet"):
        make_supernet(space, stem="imagnet", **sizes)
