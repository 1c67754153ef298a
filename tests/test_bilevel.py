"""Hypergradients against numeric differentiation of alphas -> L_valid(w'(alphas), alphas)."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from darts_jax.bilevel import (
    HYPERGRADIENTS,
    finite_difference,
    first_order,
    unrolled,
)
from darts_jax.models import make_supernet
from darts_jax.one_shot import DARTS
from darts_jax.spaces import SPACES
from darts_jax.training.metrics import cross_entropy
from darts_jax.training.optimizers import weight_optimizer
from darts_jax.types import Batch


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    """Numeric differentiation needs it, also for the weights."""
    with jax.enable_x64(True):
        yield


class Problem(NamedTuple):
    """A bilevel problem at one point, with the lower level's optimizer in mid-course."""

    loss: Callable[..., Any]
    step: Callable[[Any, Any], Any]  # the virtual step
    weights: Any
    alphas: Any
    train_batch: Batch
    valid_batch: Batch

    def gradient(self, hypergradient: Callable[..., Any], **options: Any) -> Any:
        return hypergradient(*self, **options).alphas

    def upper(self, alphas: Any) -> jax.Array:
        """L_valid(w'(alphas), alphas), written as the definition says."""
        grads = jax.grad(lambda w: self.loss(w, alphas, self.train_batch)[0])(
            self.weights
        )
        stepped = self.step(self.weights, grads)
        return self.loss(stepped, alphas, self.valid_batch)[0]


OPTIMIZERS = {
    "sgd": {"momentum": 0.0, "weight_decay": 0.0},
    "momentum": {"momentum": 0.9, "weight_decay": 0.03},
    "nesterov": {"momentum": 0.9, "weight_decay": 0.03, "nesterov": True},
}


def virtual_step(weights: Any, name: str) -> Callable[[Any, Any], Any]:
    """A step without clipping of an optimizer that has a momentum buffer already."""
    optimizer = weight_optimizer(0.1, clip=0.0, **OPTIMIZERS[name])
    before = jax.tree.map(lambda w: jnp.cos(w), weights)
    _, state = optimizer.update(before, optimizer.init(weights), weights)

    def step(weights: Any, grads: Any) -> Any:
        updates, _ = optimizer.update(grads, state, weights)
        return optax.apply_updates(weights, updates)

    return step


def smooth_problem(optimizer: str = "momentum") -> Problem:
    """Smooth in everything; alphas and weights mix, and enter the loss beyond order two."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape))

    def loss(weights: Any, alphas: Any, batch: Batch) -> tuple[jax.Array, Any]:
        mix = jax.nn.softmax(alphas["normal"])
        hidden = batch.images @ weights["first"]
        hidden = mix[0, 0] * jnp.tanh(hidden) + mix[0, 1] * jnp.sin(hidden)
        logits = hidden @ weights["second"] * (1 + mix[1])
        value = (
            jnp.square(logits - batch.labels).mean()
            + 0.1 * jnp.sin(alphas["normal"]).sum()
        )
        return value, {"mean": logits.mean()}

    weights = {"first": draw(4, 5), "second": draw(5, 2)}
    alphas = {"normal": draw(2, 2)}
    train, valid = (Batch(draw(6, 4), draw(6, 2)) for _ in range(2))
    return Problem(
        loss, virtual_step(weights, optimizer), weights, alphas, train, valid
    )


def supernet_problem(optimizer: str = "momentum", num_cells: int = 1) -> Problem:
    """A supernet of the tiny space; its only cell, or the last two, are reductions."""
    space = SPACES["tiny"](primitives=("none", "avg_pool_3x3", "sep_conv_3x3"))
    model = make_supernet(
        space, image_shape=(8, 8, 1), num_classes=3, num_cells=num_cells, channels=2
    )
    weights, stats = jax.tree.map(
        lambda x: jnp.asarray(x, jnp.float64), model.init(jax.random.key(1))
    )

    def loss(weights: Any, alphas: Any, batch: Batch) -> tuple[jax.Array, Any]:
        edge_weights = DARTS.relax(space, alphas)
        logits, new = model.apply(
            weights, stats, batch.images, edge_weights, train=True
        )
        return cross_entropy(logits, batch.labels).mean(), new

    rng = np.random.default_rng(0)
    shape = (space.num_edges, len(space.primitives))
    alphas = {kind: jnp.asarray(rng.normal(size=shape)) for kind in space.cell_kinds}
    labels = jnp.asarray([0, 1, 2, 1])
    train, valid = (
        Batch(jnp.asarray(rng.normal(size=(4, 8, 8, 1))), labels) for _ in range(2)
    )
    return Problem(
        loss, virtual_step(weights, optimizer), weights, alphas, train, valid
    )


def numeric(function: Callable[[Any], jax.Array], at: Any, step: float) -> Any:
    """The gradient by central differences, one element after the other."""
    leaves, structure = jax.tree.flatten(at)
    grads = []
    for number, leaf in enumerate(leaves):
        grad = np.zeros(leaf.shape)
        for index in np.ndindex(leaf.shape):
            ends = []
            for sign in (1, -1):
                moved = np.array(leaf)
                moved[index] += sign * step
                tree = [*leaves[:number], jnp.asarray(moved), *leaves[number + 1 :]]
                ends.append(function(jax.tree.unflatten(structure, tree)))
            grad[index] = (ends[0] - ends[1]) / (2 * step)
        grads.append(grad)
    return jax.tree.unflatten(structure, grads)


def compiled(
    hypergradient: Callable[..., Any], problem: Problem, **options: Any
) -> Any:
    """The hypergradient at the problem's point by way of `jax.jit`."""
    chosen = partial(hypergradient, problem.loss, problem.step, **options)
    return jax.jit(lambda *args: chosen(*args).alphas)(*problem[2:])


def distance(a: Any, b: Any) -> float:
    """|a - b| / |b| of two gradients."""
    difference = optax.tree.norm(jax.tree.map(jnp.subtract, a, b))
    return float(difference / optax.tree.norm(b))


def paper(problem: Problem, radius: float) -> Any:
    """Equations 7 and 8 of the paper as they stand, for SGD; epsilon = radius / |v|."""
    lr, train, valid = 0.1, problem.train_batch, problem.valid_batch
    w, alphas = problem.weights, problem.alphas

    def loss(*args: Any) -> jax.Array:
        return problem.loss(*args)[0]

    stepped = jax.tree.map(lambda w, g: w - lr * g, w, jax.grad(loss)(w, alphas, train))
    v = jax.grad(loss)(stepped, alphas, valid)
    epsilon = radius / jnp.sqrt(sum(jnp.square(x).sum() for x in jax.tree.leaves(v)))
    plus = jax.tree.map(lambda w, v: w + epsilon * v, w, v)
    minus = jax.tree.map(lambda w, v: w - epsilon * v, w, v)
    return jax.tree.map(
        lambda own, p, m: own - lr * (p - m) / (2 * epsilon),
        jax.grad(loss, 1)(stepped, alphas, valid),
        jax.grad(loss, 1)(plus, alphas, train),
        jax.grad(loss, 1)(minus, alphas, train),
    )


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_unrolled_is_the_numeric_derivative(optimizer: str) -> None:
    problem = smooth_problem(optimizer)
    wanted = numeric(jax.jit(problem.upper), problem.alphas, 1e-5)
    assert distance(problem.gradient(unrolled), wanted) < 1e-8


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_unrolled_is_reverse_over_reverse(optimizer: str) -> None:
    problem = smooth_problem(optimizer)
    wanted = jax.grad(problem.upper)(problem.alphas)
    assert distance(problem.gradient(unrolled), wanted) < 1e-13


def test_the_other_terms_matter() -> None:
    """What the tolerances above and below have to tell apart."""
    problem = smooth_problem()
    exact = problem.gradient(unrolled)
    assert distance(problem.gradient(first_order), exact) > 0.02
    # The implicit term times epsilon^2, as a well-known reimplementation has it: only
    # the gradient at w' is left of it.
    grads = jax.grad(lambda w: problem.loss(w, problem.alphas, problem.train_batch)[0])(
        problem.weights
    )
    stepped = problem.step(problem.weights, grads)
    only_direct = problem._replace(weights=stepped).gradient(first_order)
    assert distance(only_direct, exact) > 0.02


def test_first_order_is_the_derivative_at_the_own_weights() -> None:
    problem = smooth_problem()
    wanted = numeric(
        lambda a: problem.loss(problem.weights, a, problem.valid_batch)[0],
        problem.alphas,
        1e-5,
    )
    assert distance(problem.gradient(first_order), wanted) < 1e-9


def test_first_order_needs_no_train_batch() -> None:
    problem = smooth_problem()
    spoilt = jax.tree.map(lambda x: x * jnp.nan, problem.train_batch)
    found = problem._replace(train_batch=spoilt, step=None).gradient(first_order)
    assert distance(found, problem.gradient(first_order)) == 0


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_finite_difference_converges_to_unrolled(optimizer: str) -> None:
    problem = smooth_problem(optimizer)
    exact = problem.gradient(unrolled)
    errors = [
        distance(problem.gradient(finite_difference, radius=radius), exact)
        for radius in (0.04, 0.02, 0.01)
    ]
    assert errors[-1] < 1e-4
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert 3.9 < coarse / fine < 4.1  # of second order in the radius


@pytest.mark.parametrize("radius", [0.01, 0.3])
def test_finite_difference_is_the_papers_formula(radius: float) -> None:
    problem = smooth_problem("sgd")
    found = problem.gradient(finite_difference, radius=radius)
    assert distance(found, paper(problem, radius)) < 1e-11


def test_default_radius_is_the_papers() -> None:
    problem = smooth_problem()
    default = problem.gradient(finite_difference)
    assert distance(default, problem.gradient(finite_difference, radius=0.01)) == 0


@pytest.mark.parametrize("name", HYPERGRADIENTS)
def test_scaled_loss_scales_the_gradient_at_w_prime(name: str) -> None:
    """A valid loss times c gives a gradient times c: every term is linear in it."""
    problem = smooth_problem()

    def scaled(weights: Any, alphas: Any, batch: Batch) -> tuple[jax.Array, Any]:
        factor = jnp.where(
            batch.labels[0, 0] == problem.valid_batch.labels[0, 0], 100.0, 1
        )
        value, aux = problem.loss(weights, alphas, batch)
        return factor * value, aux

    found = problem._replace(loss=scaled).gradient(HYPERGRADIENTS[name])
    wanted = jax.tree.map(lambda g: 100 * g, problem.gradient(HYPERGRADIENTS[name]))
    assert distance(found, wanted) < 1e-12


# Passes over the train batch at or near the network's own weights.
PASSES = {"first_order": 0, "unrolled": 1, "finite_difference": 3}


@pytest.mark.parametrize("name", PASSES)
def test_value_and_aux(name: str) -> None:
    """The loss at the point of the gradient, and one aux for each pass."""
    problem = smooth_problem()
    result = HYPERGRADIENTS[name](*problem)
    own = name == "first_order"
    loss, train, valid = problem.loss, problem.train_batch, problem.valid_batch
    grads = jax.grad(lambda w: loss(w, problem.alphas, train)[0])(problem.weights)
    stepped = problem.step(problem.weights, grads)
    value, aux = loss(problem.weights if own else stepped, problem.alphas, valid)
    assert result.own_weights is own
    np.testing.assert_allclose(result.value, value, rtol=1e-14)
    np.testing.assert_allclose(result.valid_aux["mean"], aux["mean"], rtol=1e-13)
    assert len(result.train_aux) == PASSES[name]
    if result.train_aux:
        _, first = loss(problem.weights, problem.alphas, train)
        np.testing.assert_allclose(
            result.train_aux[0]["mean"], first["mean"], rtol=1e-13
        )


def test_finite_difference_asks_for_whole_float32_products_at_its_two_points() -> None:
    """A GPU's default of 10 bits would round the two points to the same products."""

    def loss(w: jax.Array, alphas: jax.Array, batch: Batch) -> Any:
        y = jnp.tanh(batch.images @ w)
        return (alphas * y).sum(), y

    batch = Batch(jnp.ones((3, 4)), jnp.zeros(3, int))
    arguments = (jnp.ones((4, 2)), jnp.ones(2), batch, batch)

    def whole(hypergradient: Callable[..., Any]) -> int:
        def found(*arguments: Any) -> Any:
            return hypergradient(loss, lambda w, g: w - g, *arguments)[:2]

        return jax.jit(found).lower(*arguments).as_text().count("HIGHEST, HIGHEST")

    assert whole(finite_difference) > 0 == whole(unrolled) == whole(first_order)


def test_finite_difference_visits_w_plus_before_w_minus() -> None:
    """The order of the reference, which its running statistics depend on."""
    problem = smooth_problem("sgd")
    result = finite_difference(*problem)
    grads = jax.grad(lambda w: problem.loss(w, problem.alphas, problem.train_batch)[0])(
        problem.weights
    )
    stepped = problem.step(problem.weights, grads)
    v = jax.grad(lambda w: problem.loss(w, problem.alphas, problem.valid_batch)[0])(
        stepped
    )
    epsilon = 0.01 / optax.tree.norm(v)
    for sign, found in zip((1, -1), result.train_aux[1:], strict=True):
        moved = jax.tree.map(lambda w, v: w + sign * epsilon * v, problem.weights, v)  # noqa: B023
        _, aux = problem.loss(moved, problem.alphas, problem.train_batch)
        np.testing.assert_allclose(found["mean"], aux["mean"], rtol=1e-12)


@pytest.mark.parametrize("name", HYPERGRADIENTS)
def test_without_a_gradient_at_w_prime_only_the_direct_term_is_left(name: str) -> None:
    """The direction of the finite difference has length 0 then."""
    problem = smooth_problem()

    def loss(weights: Any, alphas: Any, batch: Batch) -> tuple[jax.Array, Any]:
        valid = batch.labels[0, 0] == problem.valid_batch.labels[0, 0]
        value, aux = problem.loss(weights, alphas, batch)
        return jnp.where(valid, jnp.sin(alphas["normal"]).sum(), value), aux

    found = problem._replace(loss=loss).gradient(HYPERGRADIENTS[name])
    wanted = jax.tree.map(jnp.cos, problem.alphas)
    assert distance(found, wanted) < 1e-13


@pytest.mark.parametrize("name", HYPERGRADIENTS)
def test_compiled_equals_uncompiled(name: str) -> None:
    problem = smooth_problem()
    chosen = HYPERGRADIENTS[name]
    assert distance(compiled(chosen, problem), problem.gradient(chosen)) < 1e-12


def check_supernet(optimizer: str, num_cells: int) -> None:
    """The steps are so small that no ReLU changes its sign on the way."""
    problem = supernet_problem(optimizer, num_cells)
    exact = compiled(unrolled, problem)
    assert distance(exact, numeric(jax.jit(problem.upper), problem.alphas, 1e-6)) < 1e-6
    near = compiled(finite_difference, problem, radius=1e-6)
    assert distance(near, exact) < 1e-5


def test_supernet() -> None:
    check_supernet("nesterov", num_cells=1)


@pytest.mark.slow
def test_supernet_of_both_cell_kinds() -> None:
    check_supernet("momentum", num_cells=3)


@pytest.mark.slow
def test_supernet_finite_difference_is_the_papers_formula() -> None:
    problem = supernet_problem("sgd", num_cells=3)
    found = compiled(finite_difference, problem)
    wanted = jax.jit(lambda w: paper(problem._replace(weights=w), 0.01))(
        problem.weights
    )
    assert distance(found, wanted) < 1e-9


@pytest.mark.slow
def test_supernet_unrolled_is_reverse_over_reverse() -> None:
    problem = supernet_problem("nesterov", num_cells=3)
    reverse = jax.jit(jax.grad(problem.upper))(problem.alphas)
    assert distance(compiled(unrolled, problem), reverse) < 1e-11
    assert distance(compiled(first_order, problem), reverse) > 0.02
