"""The search step against the sequence of the reference, written out pass by pass."""

from collections.abc import Iterator
from functools import partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from darts_jax.bilevel import HYPERGRADIENTS
from darts_jax.models import KEPT
from darts_jax.one_shot import DARTS
from darts_jax.training.metrics import correct_in_top, cross_entropy
from darts_jax.training.optimizers import alpha_optimizer, weight_optimizer
from darts_jax.training.randomness import NETWORK
from darts_jax.training.search_step import (
    Optimizers,
    after_passes,
    initial_search_state,
    make_search_step,
)
from darts_jax.types import Batch, SearchState

ORDERS = ("alphas_first", "weights_first")


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def schedule(step: jax.Array) -> jax.Array:
    return jnp.asarray([0.1, 0.05, 0.02])[step]


# The gradients of the toy are longer than 0.2: clipping makes a difference.
OPTIMIZERS = Optimizers(
    weight_optimizer(schedule, weight_decay=0.03, clip=0.2),
    weight_optimizer(schedule, weight_decay=0.03, clip=0.0),
    alpha_optimizer(0.01, weight_decay=0.1),
)


def initial(toy: ModuleType, seed: int = 0) -> SearchState:
    state = initial_search_state(
        toy.SUPERNET,
        DARTS,
        toy.SPACE,
        OPTIMIZERS,
        jax.random.key(seed),
        alpha_scale=1.0,
    )
    alphas = jax.tree.map(lambda a: a.astype(jnp.float64), state.alphas)
    return state._replace(alphas=alphas, alpha_opt=OPTIMIZERS.alphas.init(alphas))


def make_step(
    toy: ModuleType, name: str, order: str = ORDERS[0], model: Any = None
) -> Any:
    return make_search_step(
        model or toy.SUPERNET,
        DARTS,
        toy.SPACE,
        OPTIMIZERS,
        HYPERGRADIENTS[name],
        order=order,
    )


class Reference:
    """The authors' loop: every pass in train mode moves the running statistics."""

    def __init__(self, toy: ModuleType, state: SearchState) -> None:
        self.toy, self.state, self.passes = toy, state, 0
        self.key = jax.random.fold_in(
            jax.random.fold_in(state.key, NETWORK), state.step
        )

    def logits(self, weights: Any, alphas: Any, batch: Batch) -> tuple[jax.Array, Any]:
        edge_weights = DARTS.relax(self.toy.SPACE, alphas)
        stats = self.state.batch_stats
        return self.toy.SUPERNET.apply(
            weights, stats, batch.images, edge_weights, train=True, key=self.key
        )

    def loss(self, weights: Any, alphas: Any, batch: Batch) -> jax.Array:
        return cross_entropy(
            self.logits(weights, alphas, batch)[0], batch.labels
        ).mean()

    def run_pass(self, weights: Any, batch: Batch) -> None:
        _, stats = self.logits(weights, self.state.alphas, batch)
        self.state = self.state._replace(batch_stats=stats)
        self.passes += 1

    def virtual(self, weights: Any, alphas: Any, train: Batch) -> Any:
        """w' by SGD with momentum and decay, without clipping."""
        grads = jax.grad(self.loss)(weights, alphas, train)
        # Its learning rate is this step's in both orders.
        weight_opt = optax.tree.set(self.state.weight_opt, count=self.state.step)
        updates, _ = OPTIMIZERS.virtual.update(grads, weight_opt, weights)
        return optax.apply_updates(weights, updates)

    def alphas_step(self, name: str, train: Batch, valid: Batch) -> dict[str, Any]:
        weights, alphas = self.state.weights, self.state.alphas
        own = name == "first_order"
        stepped = weights if own else self.virtual(weights, alphas, train)
        logits, _ = self.logits(stepped, alphas, valid)
        reported = {
            "valid_loss": cross_entropy(logits, valid.labels).mean(),
            "valid_accuracy": correct_in_top(logits, valid.labels, 1).mean(),
        }
        grads = jax.grad(self.loss, 1)(stepped, alphas, valid)
        if own:
            self.run_pass(weights, valid)
        else:
            self.run_pass(weights, train)  # for w'; the valid pass is on a copy
            grads = jax.grad(
                lambda a: self.loss(self.virtual(weights, a, train), a, valid)
            )(alphas)
        if name == "finite_difference":
            v = jax.grad(self.loss)(stepped, alphas, valid)
            for sign in (1, -1):
                moved = jax.tree.map(
                    lambda w, x: w + sign * 0.01 / optax.tree.norm(v) * x,  # noqa: B023
                    weights,
                    v,
                )
                self.run_pass(moved, train)
        updates, alpha_opt = OPTIMIZERS.alphas.update(
            grads, self.state.alpha_opt, alphas
        )
        alphas = optax.apply_updates(alphas, updates)
        self.state = self.state._replace(alphas=alphas, alpha_opt=alpha_opt)
        return reported

    def weights_step(self, train: Batch) -> dict[str, Any]:
        weights, alphas = self.state.weights, self.state.alphas
        logits, _ = self.logits(weights, alphas, train)
        grads = jax.grad(self.loss)(weights, alphas, train)
        self.run_pass(weights, train)
        updates, weight_opt = OPTIMIZERS.weights.update(
            grads, self.state.weight_opt, weights
        )
        weights = optax.apply_updates(weights, updates)
        self.state = self.state._replace(weights=weights, weight_opt=weight_opt)
        return {
            "train_loss": cross_entropy(logits, train.labels).mean(),
            "train_accuracy": correct_in_top(logits, train.labels, 1).mean(),
        }


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ["first_order", "unrolled", "finite_difference"])
def test_three_steps_are_the_references(name: str, order: str, toy: ModuleType) -> None:
    step = jax.jit(make_step(toy, name, order))
    state = wanted = initial(toy)
    # The finite difference itself is compared in test_bilevel.py; here to its accuracy.
    rtol = 1e-3 if name == "finite_difference" else 1e-9
    for number in range(3):
        train, valid = toy.batch(2 * number), toy.batch(2 * number + 1)
        state, metrics = step(state, train, valid)
        reference = Reference(toy, wanted)
        if order == "alphas_first":
            reported = reference.alphas_step(name, train, valid)
            reported |= reference.weights_step(train)
        else:
            reported = reference.weights_step(train)
            reported |= reference.alphas_step(name, train, valid)
        wanted = reference.state._replace(step=wanted.step + 1)
        assert reference.passes == (4 if name == "finite_difference" else 2)
        toy.assert_close(metrics, reported, rtol)
        toy.assert_close(state._replace(key=None), wanted._replace(key=None), rtol)
    assert int(state.step) == 3


@pytest.mark.parametrize(
    ("name", "passes"), [("first_order", 2), ("unrolled", 2), ("finite_difference", 4)]
)
def test_number_of_passes(name: str, passes: int, toy: ModuleType) -> None:
    """Black images have batch statistics 0, so only the share that is kept is left."""
    black = toy.batch(0)._replace(images=jnp.zeros((6, *toy.IMAGE)))
    state = initial(toy)
    new, _ = make_step(toy, name)(state, black, black)
    np.testing.assert_allclose(new.batch_stats["mean"], 0.9**passes, rtol=1e-12)


@pytest.mark.parametrize("number", [0, 1, 4])
def test_after_passes_is_one_after_the_other(number: int) -> None:
    rng = np.random.default_rng(0)
    old = {
        "mean": jnp.asarray(rng.normal(size=3)),
        "var": jnp.asarray(rng.normal(size=2)),
    }
    batches = [
        jax.tree.map(lambda x: rng.normal(size=x.shape), old) for _ in range(number)
    ]

    def observe(running: Any, batch: Any) -> Any:
        return jax.tree.map(lambda r, b: KEPT * r + (1 - KEPT) * b, running, batch)

    wanted = old
    for batch in batches:
        wanted = observe(wanted, batch)
    found = after_passes(old, [observe(old, batch) for batch in batches])
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12), found, wanted)


def test_first_order_alphas_ignore_the_train_batch(toy: ModuleType) -> None:
    step, state, valid = make_step(toy, "first_order"), initial(toy), toy.batch(1)
    one, other = (step(state, toy.batch(seed), valid)[0] for seed in (0, 5))
    assert toy.raw(one.alphas) == toy.raw(other.alphas)
    assert toy.raw(one.weights) != toy.raw(other.weights)
    step = make_step(toy, "unrolled")
    one, other = (step(state, toy.batch(seed), valid)[0] for seed in (0, 5))
    assert toy.raw(one.alphas) != toy.raw(other.alphas)


def test_weights_see_the_valid_batch_only_through_the_alphas(toy: ModuleType) -> None:
    state, train = initial(toy), toy.batch(0)
    first, second = (
        make_step(toy, "first_order", "weights_first")(state, train, toy.batch(seed))[0]
        for seed in (1, 5)
    )
    assert toy.raw(first.weights) == toy.raw(second.weights)
    assert toy.raw(first.alphas) != toy.raw(second.alphas)
    frozen = OPTIMIZERS._replace(alphas=optax.set_to_zero())
    step = make_search_step(
        toy.SUPERNET, DARTS, toy.SPACE, frozen, HYPERGRADIENTS["unrolled"]
    )
    state = state._replace(alpha_opt=frozen.alphas.init(state.alphas))
    first, second = (step(state, train, toy.batch(seed))[0] for seed in (1, 5))
    assert toy.raw(first.weights) == toy.raw(second.weights)


@pytest.mark.parametrize("name", HYPERGRADIENTS)
def test_same_seed_same_bits_other_seed_others(name: str, toy: ModuleType) -> None:
    step = jax.jit(make_step(toy, name))

    def run(seed: int) -> list[bytes]:
        state = initial(toy, seed)
        for number in range(3):
            state, _ = step(state, toy.batch(number), toy.batch(number + 9))
        return toy.raw(state)

    assert run(0) == run(0)
    for one, other in zip(run(0)[1:], run(1)[1:], strict=True):
        assert one != other or len(one) == 4  # 4 bytes: the counters of the optimizers


@pytest.mark.parametrize("name", HYPERGRADIENTS)
def test_compiled_equals_uncompiled(name: str, toy: ModuleType) -> None:
    step, arguments = make_step(toy, name), (initial(toy), toy.batch(0), toy.batch(1))
    (plain, reported), (compiled, metrics) = step(*arguments), jax.jit(step)(*arguments)
    toy.assert_close(metrics, reported)
    toy.assert_close(compiled._replace(key=None), plain._replace(key=None))


def test_every_step_has_a_key_of_its_own(toy: ModuleType) -> None:
    """The networks' randomness (noise, drop path) must differ from step to step."""
    step, state = make_step(toy, "first_order"), initial(toy)
    arguments = (toy.batch(0), toy.batch(1))
    losses = {
        float(step(state._replace(step=jnp.int32(number)), *arguments)[1]["train_loss"])
        for number in range(3)
    }
    assert len(losses) == 3


def test_state_changes_no_type(toy: ModuleType) -> None:
    """A leaf of another type, or weakly typed, would compile the step a second time."""
    state = jax.jit(lambda: initial(toy))()
    new, _ = jax.jit(make_step(toy, "unrolled"))(state, toy.batch(0), toy.batch(1))
    for before, after in zip(jax.tree.leaves(state), jax.tree.leaves(new), strict=True):
        assert before.aval == after.aval


def test_initial_state(toy: ModuleType) -> None:
    state = initial(toy)
    assert int(state.step) == 0
    assert toy.raw(state.key) != toy.raw(jax.random.key(0))
    zero = initial_search_state(
        toy.SUPERNET, DARTS, toy.SPACE, OPTIMIZERS, jax.random.key(0), alpha_scale=0.0
    )
    assert not any(alphas.any() for alphas in zero.alphas.values())
    assert toy.raw(zero.weights) == toy.raw(state.weights)
