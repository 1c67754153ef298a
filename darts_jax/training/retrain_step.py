"""The retraining step: a derived network trained from scratch, and its evaluation step."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from darts_jax.training.accumulation import accumulated
from darts_jax.training.metrics import correct_in_top, cross_entropy
from darts_jax.training.randomness import NETWORK
from darts_jax.types import Batch, Model, RetrainState, Weights

Metrics = dict[str, jax.Array]
RetrainStep = Callable[[RetrainState, Batch], tuple[RetrainState, Metrics]]


def initial_retrain_state(
    model: Model, optimizer: optax.GradientTransformation, key: jax.Array
) -> RetrainState:
    """Returns the state before the first step; everything random comes from `key`."""
    weights_key, run_key = jax.random.split(key)
    weights, batch_stats = model.init(weights_key)
    return RetrainState(
        step=jnp.zeros((), jnp.int32),
        key=run_key,
        weights=weights,
        batch_stats=batch_stats,
        weight_opt=optimizer.init(weights),
    )


def make_retrain_step(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    drop_path: Callable[[jax.Array], jax.Array] | None = None,
    auxiliary_weight: float = 0.0,
    label_smoothing: float = 0.0,
    parts: int = 1,
) -> RetrainStep:
    """Returns `retrain_step(state, train_batch) -> (state, metrics)`.

    Args:
        model: a derived network.
        optimizer: of its weights.
        drop_path: step -> probability (the reference: rising linearly over epochs), or None.
        auxiliary_weight: of the auxiliary head's loss, where the model has one.
        label_smoothing: of both losses.
        parts: of a batch, computed one after another to save memory.

    The metrics are means over the batch: train_loss (with the auxiliary loss),
    train_accuracy.
    """

    def loss(
        weights: Weights,
        state: RetrainState,
        batch: Batch,
        part: jax.Array | None = None,
    ) -> tuple:
        extra = {} if drop_path is None else {"drop_path": drop_path(state.step)}
        key = jax.random.fold_in(jax.random.fold_in(state.key, NETWORK), state.step)
        logits, stats = model.apply(
            weights,
            state.batch_stats,
            batch.images,
            train=True,
            key=key if part is None else jax.random.fold_in(key, part),
            **extra,
        )
        logits, auxiliary = logits if isinstance(logits, tuple) else (logits, None)
        labels = batch.labels
        value = cross_entropy(logits, labels, smoothing=label_smoothing).mean()
        if auxiliary is not None:
            losses = cross_entropy(auxiliary, labels, smoothing=label_smoothing)
            value += auxiliary_weight * losses.mean()
        return value, (stats, correct_in_top(logits, labels, 1).mean())

    def retrain_step(
        state: RetrainState, train_batch: Batch
    ) -> tuple[RetrainState, Metrics]:
        (value, (stats, accuracy)), grads = jax.value_and_grad(
            accumulated(loss, parts), has_aux=True
        )(state.weights, state, train_batch)
        updates, weight_opt = optimizer.update(grads, state.weight_opt, state.weights)
        state = state._replace(
            step=state.step + 1,
            weights=optax.apply_updates(state.weights, updates),
            batch_stats=stats,
            weight_opt=weight_opt,
        )
        return state, {"train_loss": value, "train_accuracy": accuracy}

    return retrain_step
