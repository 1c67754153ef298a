"""The contract of every primitive: shapes, stacks of edges, gradients, statistics."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darts_jax.errors import UserError
from darts_jax.genotype import PRIMITIVES
from darts_jax.models.initial import initial_weights
from darts_jax.models.layers import BatchNorm
from darts_jax.models.operations import OPERATIONS

CHANNELS = 4
SHARED = {"none", "max_pool_3x3", "avg_pool_3x3"}  # one value for all edges
ONE_EDGE = {"conv_7x1_1x7"}
STACKED = sorted(set(OPERATIONS) - ONE_EDGE - {"noise"})
RECTIFIED = (
    *("skip_connect", "sep_conv_3x3", "sep_conv_5x5", "sep_conv_7x7", "dil_conv_3x3"),
    *("dil_conv_5x5", "conv_7x1_1x7", "nor_conv_1x1", "nor_conv_3x3"),
)


def _operation(name: str, stride: int, edges: int, *, affine: bool = True, **extra):
    norm = functools.partial(BatchNorm, affine=affine)
    return OPERATIONS[name](CHANNELS, stride, edges, norm, **extra)


def _random_variables(module: Any, x: jax.Array, seed: int = 0) -> dict[str, Any]:
    """Random weights and statistics, every edge its own."""
    rngs = {"params": jax.random.key(0), "noise": jax.random.key(0)}
    shapes = jax.eval_shape(lambda: module.init(rngs, x, train=True))
    rng = np.random.default_rng(seed)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        positive = path[-1].key in ("var", "scale")
        values = rng.uniform(0.5, 1.5, leaf.shape) if positive else None
        values = rng.normal(size=leaf.shape) if values is None else values
        return values.astype(np.float32)

    return jax.tree.map_with_path(draw, shapes)


def _run(module: Any, variables: Any, x: jax.Array, train: bool) -> Any:
    rngs = {"noise": jax.random.key(3)}
    return module.apply(variables, x, train=train, rngs=rngs, mutable=["batch_stats"])


def _image(seed: int = 1) -> jax.Array:
    shape = (CHANNELS, 3, 7, 6)  # one odd size, one even
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_every_known_primitive_is_an_operation() -> None:
    assert set(OPERATIONS) == set(PRIMITIVES)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("name", "edges"),
    [
        (name, n)
        for name in OPERATIONS
        for n in (1, 3)
        if n == 1 or name not in ONE_EDGE
    ],
)
def test_shape(name: str, edges: int, stride: int, train: bool) -> None:
    x, module = _image(), _operation(name, stride, edges)
    variables = _random_variables(module, x)
    y, updated = jax.eval_shape(
        functools.partial(_run, module, train=train), variables, x
    )
    size = (7, 6) if stride == 1 else (4, 3)
    assert y.shape[1:] == (CHANNELS, 3, *size)
    assert y.dtype == jnp.float32
    shared = name in SHARED or (name == "skip_connect" and stride == 1)
    assert y.shape[0] == (1 if shared else edges)
    stats = variables.get("batch_stats", {})
    after = updated.get("batch_stats", {})
    assert jax.tree.structure(after) == jax.tree.structure(stats)
    for leaf in jax.tree.leaves(variables):
        assert leaf.shape[0] == edges


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", STACKED)
def test_each_edge_of_a_stack_is_the_operation_with_its_own_weights(
    name: str, stride: int
) -> None:
    x, stack, single = _image(), *(_operation(name, stride, n) for n in (2, 1))
    variables = _random_variables(stack, x)

    @jax.jit
    def outputs(variables: Any, x: jax.Array) -> Any:
        each = [
            _run(single, jax.tree.map(lambda v, e=e: v[e : e + 1], variables), x, True)
            for e in range(2)
        ]
        return _run(stack, variables, x, True), each

    (y, stats), each = outputs(variables, x)
    y = jnp.broadcast_to(y, (2, *y.shape[1:]))
    for e, (wanted, stats_of_edge) in enumerate(each):
        np.testing.assert_allclose(y[e], wanted[0], rtol=0, atol=2e-5)
        ours = jax.tree.map(lambda v, e=e: v[e : e + 1], stats)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
            ours,
            stats_of_edge,
        )
    if name not in SHARED and not (name == "skip_connect" and stride == 1):
        assert np.abs(y[0] - y[1]).max() > 0.1  # the two edges do differ


@pytest.mark.parametrize("name", OPERATIONS)
def test_gradients_are_finite_and_reach_every_weight(name: str) -> None:
    x, module = _image(), _operation(name, 2, 1)
    variables = _random_variables(module, x)
    weights, stats = variables.get("params", {}), variables.get("batch_stats", {})
    cotangent = jax.random.normal(jax.random.key(5), (1, CHANNELS, 3, 4, 3))

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1))
    def gradients(weights: Any, x: jax.Array) -> jax.Array:
        variables = {"params": weights, "batch_stats": stats}
        return (_run(module, variables, x, True)[0] * cotangent).sum()

    dw, dx = gradients(weights, x)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((dw, dx)))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(dw))
    assert (np.abs(dx).max() > 0) == (name not in ("none", "noise"))


@pytest.mark.parametrize("name", RECTIFIED)
def test_relu_comes_first_and_has_no_gradient_at_zero(name: str) -> None:
    x = jnp.zeros((CHANNELS, 2, 4, 4))
    module = _operation(name, 2, 1)
    variables = _random_variables(module, x)

    @jax.jit
    def gradient(x: jax.Array) -> jax.Array:
        return jax.grad(lambda x: _run(module, variables, x, False)[0].sum())(x)

    np.testing.assert_array_equal(gradient(x), 0)
    np.testing.assert_array_equal(gradient(x - 1), 0)
    assert np.abs(gradient(x + 1)).max() > 0


@pytest.mark.parametrize("kind", ["max", "avg"])
def test_a_search_pool_is_followed_by_a_plain_batch_norm(kind: str) -> None:
    x, name = _image(), f"{kind}_pool_3x3"
    module = _operation(name, 1, 2, pool_norm=True)
    variables = _random_variables(module, x)
    assert "params" not in variables  # never affine, whatever the norm of the others
    y, _ = _run(module, variables, x, True)
    pooled, _ = _run(_operation(name, 1, 2), {}, x, True)
    pooled = np.asarray(pooled, np.float64)
    mean, var = (f(pooled, axis=(-3, -2, -1), keepdims=True) for f in (np.mean, np.var))
    np.testing.assert_allclose(y, (pooled - mean) / np.sqrt(var + 1e-5), atol=1e-4)


def test_skip_connect_is_the_identity_and_none_is_zero() -> None:
    x = _image()
    np.testing.assert_array_equal(
        _run(_operation("skip_connect", 1, 2), {}, x, True)[0][0], x
    )
    np.testing.assert_array_equal(_run(_operation("none", 1, 2), {}, x, True)[0], 0)


def test_noise_is_standard_normal_and_drawn_from_the_key() -> None:
    module = _operation("noise", 1, 2)
    x = jnp.zeros((8, 16, 16, 16))

    @jax.jit
    def draw(seed: jax.Array) -> jax.Array:
        return module.apply({}, x, train=True, rngs={"noise": jax.random.key(seed)})

    first = np.asarray(draw(0))
    np.testing.assert_array_equal(draw(0), first)
    assert np.abs(draw(1) - first).max() > 1
    assert np.abs(first[0] - first[1]).max() > 1  # each edge its own
    error = 1 / np.sqrt(first.size)
    assert abs(first.mean()) < 5 * error
    assert abs(first.var() - 1) < 5 * np.sqrt(2) * error


def test_conv_7x1_1x7_is_refused_in_a_supernet() -> None:
    with pytest.raises(UserError, match="conv_7x1_1x7 .* leave it out"):
        _random_variables(_operation("conv_7x1_1x7", 1, 2), _image())


def test_sep_conv_strides_first_and_dil_conv_dilates() -> None:
    """A single one in the image: which pixels can it reach?"""
    x = jnp.zeros((CHANNELS, 1, 15, 15)).at[:, 0, 7, 7].set(1.0)
    reached = {}
    for name in ("sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5"):
        module = _operation(name, 1, 1, affine=False)
        shapes = jax.eval_shape(
            functools.partial(module.init, train=False), jax.random.key(0), x
        )
        weights = jax.tree.map(jnp.abs, initial_weights(jax.random.key(0), shapes))
        variables = {
            "params": weights["params"],
            "batch_stats": jax.tree.map_with_path(
                lambda p, s: jnp.full(s.shape, float(p[-1].key == "var")),
                shapes["batch_stats"],
            ),
        }
        run = jax.jit(functools.partial(_run, module, train=False))
        y = np.asarray(run(variables, x)[0])[0, 0, 0]
        rows = np.flatnonzero(y.any(1)) - 7
        reached[name] = (rows.min(), rows.max(), len(rows))
    assert reached == {
        "sep_conv_3x3": (-2, 2, 5),
        "sep_conv_5x5": (-4, 4, 9),
        "dil_conv_3x3": (-2, 2, 3),
        "dil_conv_5x5": (-4, 4, 5),
    }
