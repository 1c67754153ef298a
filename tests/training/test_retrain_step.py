"""The retraining step: losses, what the model is given, the update."""

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from darts_jax.training.metrics import cross_entropy
from darts_jax.training.optimizers import weight_optimizer
from darts_jax.training.randomness import NETWORK
from darts_jax.training.retrain_step import initial_retrain_state, make_retrain_step
from darts_jax.types import Model, RetrainState

OPTIMIZER = weight_optimizer(0.1, clip=0.5)


def initial(model: Model, seed: int = 0) -> RetrainState:
    return initial_retrain_state(model, OPTIMIZER, jax.random.key(seed))


def written_out(
    toy: ModuleType, state: RetrainState, batch: Any, drop_path: float, smoothing: float
) -> Any:
    """(loss of weights -> (value, auxiliary value, statistics)) of the toy network."""

    def losses(weights: Any) -> Any:
        key = jax.random.fold_in(jax.random.fold_in(state.key, NETWORK), state.step)
        logits, stats = toy.network_apply(
            weights,
            state.batch_stats,
            batch.images,
            train=True,
            key=key,
            drop_path=drop_path,
        )
        values = [
            cross_entropy(output, batch.labels, smoothing=smoothing).mean()
            for output in (logits, jnp.flip(logits, -1))
        ]
        accuracy = (logits.argmax(-1) == batch.labels).mean()
        return values, stats, accuracy

    return losses


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("auxiliary_weight", [0.0, 0.4])
@pytest.mark.parametrize("auxiliary", [False, True])
def test_steps_written_out(
    auxiliary: bool, auxiliary_weight: float, smoothing: float, toy: ModuleType
) -> None:
    model = toy.WITH_AUXILIARY if auxiliary else toy.NETWORK
    rates = jnp.asarray([0.0, 0.3, 0.6])
    step = jax.jit(
        make_retrain_step(
            model,
            OPTIMIZER,
            drop_path=lambda step: rates[step],
            auxiliary_weight=auxiliary_weight,
            label_smoothing=smoothing,
        )
    )
    with jax.enable_x64(True):
        state = initial(model)
        for number in range(3):
            batch = toy.batch(number)
            losses = written_out(toy, state, batch, float(rates[number]), smoothing)

            def total(weights: Any) -> jax.Array:
                (main, second), _, _ = losses(weights)  # noqa: B023
                return main + (auxiliary_weight if auxiliary else 0.0) * second

            grads = jax.grad(total)(state.weights)
            updates, weight_opt = OPTIMIZER.update(
                grads, state.weight_opt, state.weights
            )
            _, stats, accuracy = losses(state.weights)
            wanted = RetrainState(
                step=state.step + 1,
                key=None,
                weights=optax.apply_updates(state.weights, updates),
                batch_stats=stats,
                weight_opt=weight_opt,
            )
            reported = {"train_loss": total(state.weights), "train_accuracy": accuracy}
            state, metrics = step(state, batch)
            toy.assert_close(state._replace(key=None), wanted, 1e-6)
            toy.assert_close(metrics, reported, 1e-6)


def test_without_drop_path_the_model_is_not_given_any(toy: ModuleType) -> None:
    """The network then is the one without drop path, not one with probability 0."""
    given = []

    def apply(*args: Any, **kwargs: Any) -> Any:
        given.append(set(kwargs))
        return toy.network_apply(*args, **kwargs)

    model = toy.NETWORK._replace(apply=apply)
    jax.eval_shape(make_retrain_step(model, OPTIMIZER), initial(model), toy.batch(0))
    assert set(map(frozenset, given)) == {frozenset({"train", "key"})}


def test_same_seed_same_bits_other_seed_others(toy: ModuleType) -> None:
    step = jax.jit(make_retrain_step(toy.NETWORK, OPTIMIZER))

    def run(seed: int) -> list[bytes]:
        state = initial(toy.NETWORK, seed)
        for number in range(3):
            state, _ = step(state, toy.batch(number))
        return toy.raw(state.weights)

    assert run(0) == run(0)
    assert not set(run(0)) & set(run(1))


def test_every_step_has_a_key_of_its_own(toy: ModuleType) -> None:
    step, state = make_retrain_step(toy.NETWORK, OPTIMIZER), initial(toy.NETWORK)
    losses = {
        float(
            step(state._replace(step=jnp.int32(number)), toy.batch(0))[1]["train_loss"]
        )
        for number in range(3)
    }
    assert len(losses) == 3


def test_state_changes_no_type(toy: ModuleType) -> None:
    """A leaf of another type, or weakly typed, would compile the step a second time."""
    state = jax.jit(lambda: initial(toy.NETWORK))()
    new, _ = jax.jit(make_retrain_step(toy.NETWORK, OPTIMIZER))(state, toy.batch(0))
    for before, after in zip(jax.tree.leaves(state), jax.tree.leaves(new), strict=True):
        assert before.aval == after.aval
    assert np.shape(new.step) == ()
