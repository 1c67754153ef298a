"""Gradient accumulation: the mean of the parts, in value, gradients and statistics."""

from functools import partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darts_jax.bilevel import HYPERGRADIENTS
from darts_jax.one_shot import ONE_SHOT
from darts_jax.training.accumulation import accumulated
from darts_jax.training.optimizers import alpha_optimizer, weight_optimizer
from darts_jax.training.retrain_step import initial_retrain_state, make_retrain_step
from darts_jax.training.search_step import (
    Optimizers,
    initial_search_state,
    make_search_step,
)
from darts_jax.types import Batch

PARTS, SIZE = 3, 12


def make_batch(seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    images = jnp.asarray(rng.normal(size=(SIZE, 2, 2, 1)), jnp.float32)
    return Batch(images, jnp.asarray(rng.integers(0, 3, SIZE), jnp.int32))


def loss(scale: jax.Array, shift: jax.Array, batch: Batch, part: Any = None) -> Any:
    """Not linear in the batch, so that the mean over parts is not that of the whole."""
    value = jnp.tanh(scale * batch.images.mean() + shift) ** 2
    return value, {"labels": batch.labels.astype(jnp.float32).mean(), "part": part}


def parts_of(batch: Batch) -> list[Batch]:
    return [Batch(batch.images[i::PARTS], batch.labels[i::PARTS]) for i in range(PARTS)]


def test_value_and_what_is_reported_are_means_over_the_parts() -> None:
    batch, at = make_batch(), (jnp.float32(2.0), jnp.float32(0.3))
    value, aux = accumulated(loss, PARTS)(*at, batch)
    each = [loss(*at, part) for part in parts_of(batch)]
    assert value == pytest.approx(np.mean([v for v, _ in each]), rel=1e-6)
    assert value != pytest.approx(float(loss(*at, batch)[0]), rel=1e-3)
    assert aux["labels"] == pytest.approx(float(batch.labels.mean()), rel=1e-6)
    assert aux["part"] == pytest.approx(1.0)  # the numbers 0, 1, 2 were handed out


def test_one_part_is_the_loss_itself() -> None:
    assert accumulated(loss, 1) is loss


def test_first_and_second_derivatives_are_means_over_the_parts() -> None:
    batch, at = make_batch(), (jnp.float32(2.0), jnp.float32(0.3))

    def mixed(function: Any, some: Batch) -> tuple[Any, Any]:
        def slope(scale: jax.Array, shift: jax.Array) -> jax.Array:
            return jax.grad(lambda s: function(s, shift, some)[0])(scale)

        return slope(*at), jax.jvp(partial(slope, at[0]), at[1:], (jnp.float32(1),))[1]

    found = mixed(accumulated(loss, PARTS), batch)
    wanted = np.mean([mixed(loss, part) for part in parts_of(batch)], axis=0)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_examples_stay_on_their_device() -> None:
    """A part takes an equal share of every contiguous block of the batch."""
    numbers = jnp.arange(SIZE)
    seen: list[Any] = []

    def look(batch: Any, part: Any = None) -> Any:
        jax.debug.callback(lambda values: seen.append(np.sort(values)), batch)
        return batch.sum()

    accumulated(look, PARTS)(numbers)
    jax.effects_barrier()
    for values in seen:
        assert [int((values // (SIZE // 2) == half).sum()) for half in (0, 1)] == [2, 2]


@pytest.mark.parametrize("hypergradient", sorted(HYPERGRADIENTS))
def test_search_step_of_equal_parts_is_that_of_one_part(
    hypergradient: str, toy: ModuleType
) -> None:
    """A batch of three copies in three parts is the small batch: the toy has no moments
    that feel its size, and its noise is taken out."""

    def quiet(*args: Any, key: Any = None, **kwargs: Any) -> Any:
        return toy.SUPERNET.apply(*args, key=jax.random.key(0), **kwargs)

    model = toy.SUPERNET._replace(apply=noiseless(quiet, toy))
    strategy, rate = ONE_SHOT["darts"], 0.1
    optimizers = Optimizers(
        weight_optimizer(rate), weight_optimizer(rate, clip=0), alpha_optimizer(rate)
    )
    state = initial_search_state(
        model, strategy, toy.SPACE, optimizers, jax.random.key(1), alpha_scale=1.0
    )
    small = [jax.tree.map(lambda a: a[:4], make_batch(seed)) for seed in (0, 1)]
    large = [jax.tree.map(lambda a: jnp.repeat(a, PARTS, 0), b) for b in small]

    def after(batches: list[Batch], parts: int) -> Any:
        step = make_search_step(
            model,
            strategy,
            toy.SPACE,
            optimizers,
            HYPERGRADIENTS[hypergradient],
            parts=parts,
        )
        state_after, metrics = jax.jit(step)(state, *batches)
        rest = state_after._replace(key=None)
        return rest, metrics

    for found, wanted in zip(
        jax.tree.leaves(after(large, PARTS)),
        jax.tree.leaves(after(small, 1)),
        strict=True,
    ):
        np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=1e-6)


def noiseless(apply: Any, toy: ModuleType) -> Any:
    """Takes the toy's noise, which differs between rows, out of its logits."""

    def quiet(
        weights: Any, stats: Any, images: Any, *rest: Any, train: bool, **kw: Any
    ):
        logits, new = apply(weights, stats, images, *rest, train=train, **kw)
        noise = 0.1 * jax.random.normal(jax.random.key(0), logits.shape)
        return logits - noise * train, new

    return quiet


def test_parts_of_a_retraining_step_have_randomness_of_their_own(
    toy: ModuleType,
) -> None:
    keys: list[Any] = []

    def apply(*args: Any, key: Any = None, **kwargs: Any) -> Any:
        jax.debug.callback(lambda k: keys.append(tuple(k)), jax.random.key_data(key))
        return toy.NETWORK.apply(*args, key=key, **kwargs)

    model, optimizer = toy.NETWORK._replace(apply=apply), weight_optimizer(0.1)
    state = initial_retrain_state(model, optimizer, jax.random.key(0))
    make_retrain_step(model, optimizer, parts=PARTS)(state, make_batch())
    jax.effects_barrier()
    assert len(set(map(tuple, (map(int, k) for k in keys)))) == PARTS
