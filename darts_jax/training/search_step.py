"""The search step: one upper-level update of the alphas, one lower-level of the weights.

This is Algorithm 1 of DARTS (Liu et al. 2019) as the authors' code runs it: the alphas step
first, with the valid batch (and, second order, the train batch), then the weights step on
the same train batch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from darts_jax.bilevel import Hypergradient, Loss
from darts_jax.errors import unknown
from darts_jax.models import KEPT
from darts_jax.one_shot import OneShot
from darts_jax.spaces import Space
from darts_jax.training.accumulation import accumulated
from darts_jax.training.metrics import correct_in_top, cross_entropy
from darts_jax.training.randomness import NETWORK
from darts_jax.types import Alphas, Batch, BatchStats, Model, SearchState, Weights

Metrics = dict[str, jax.Array]
ORDERS = ("alphas_first", "weights_first")
SearchStep = Callable[[SearchState, Batch, Batch], tuple[SearchState, Metrics]]


class Optimizers(NamedTuple):
    """weights and alphas as they are updated; `virtual` is `weights` without clipping."""

    weights: optax.GradientTransformation
    virtual: optax.GradientTransformation
    alphas: optax.GradientTransformation


def initial_search_state(
    model: Model,
    strategy: OneShot,
    space: Space,
    optimizers: Optimizers,
    key: jax.Array,
    *,
    alpha_scale: float,
) -> SearchState:
    """Returns the state before the first step; everything random comes from `key`."""
    weights_key, alphas_key, run_key = jax.random.split(key, 3)
    weights, batch_stats = model.init(weights_key)
    alphas = strategy.initial_alphas(space, alphas_key, alpha_scale)
    return SearchState(
        step=jnp.zeros((), jnp.int32),
        key=run_key,
        weights=weights,
        batch_stats=batch_stats,
        weight_opt=optimizers.weights.init(weights),
        alphas=alphas,
        alpha_opt=optimizers.alphas.init(alphas),
    )


def after_passes(old: BatchStats, passes: list[BatchStats]) -> BatchStats:
    """Returns the running statistics after several passes in a row.

    Every pass reports `kept * old + (1 - kept) * batch` with the same `old`, since all of
    them ran from one state; in the reference each starts from the one before.
    """
    running = old
    for observed in passes:
        running = jax.tree.map(
            lambda r, o, s: KEPT * r + (s - KEPT * o), running, old, observed
        )
    return running


class Levels(NamedTuple):
    """What both levels of a search step are made of.

    hypergradient: one of `bilevel.HYPERGRADIENTS`, its options bound.
    parts: of a batch, computed one after another (`accumulation.accumulated`).
    """

    model: Model
    strategy: OneShot
    space: Space
    optimizers: Optimizers
    hypergradient: Callable[..., Hypergradient]
    parts: int = 1


def loss_at(levels: Levels, state: SearchState) -> Loss:
    """Returns `loss(weights, alphas, batch) -> (mean loss, (batch_stats, accuracy))`.

    In training mode, with the running statistics and the randomness of `state`.
    """
    key = jax.random.fold_in(jax.random.fold_in(state.key, NETWORK), state.step)

    def loss(
        weights: Weights, alphas: Alphas, batch: Batch, part: jax.Array | None = None
    ) -> tuple:
        logits, stats = levels.model.apply(
            weights,
            state.batch_stats,
            batch.images,
            levels.strategy.relax(levels.space, alphas),
            train=True,
            key=key if part is None else jax.random.fold_in(key, part),
        )
        value = cross_entropy(logits, batch.labels).mean()
        accuracy = correct_in_top(logits, batch.labels, 1).mean()
        return value, (stats, accuracy)

    return accumulated(loss, levels.parts)


def at_step(weight_opt: optax.OptState, step: jax.Array) -> optax.OptState:
    """Returns the optimizer state with its schedule at `step`.

    Where the weights were stepped first, theirs is one ahead: at the end of an epoch the
    virtual step would have the next epoch's learning rate.
    """

    def is_schedule(part: Any) -> bool:
        return isinstance(part, optax.ScaleByScheduleState)

    return jax.tree.map(
        lambda part: part._replace(count=step) if is_schedule(part) else part,
        weight_opt,
        is_leaf=is_schedule,
    )


def hypergradient_at(
    levels: Levels, state: SearchState, train_batch: Batch, valid_batch: Batch
) -> Hypergradient:
    """Returns the gradient of the alphas at `state`, before the upper level's optimizer."""
    weight_opt = at_step(state.weight_opt, state.step)

    def virtual_step(weights: Weights, grads: Weights) -> Weights:
        updates, _ = levels.optimizers.virtual.update(grads, weight_opt, weights)
        return optax.apply_updates(weights, updates)

    return levels.hypergradient(
        loss_at(levels, state),
        virtual_step,
        state.weights,
        state.alphas,
        train_batch,
        valid_batch,
    )


def alphas_step(
    levels: Levels, state: SearchState, train_batch: Batch, valid_batch: Batch
) -> tuple[SearchState, Metrics]:
    """Returns the state after one update of the alphas, and valid_loss, valid_accuracy."""
    result = hypergradient_at(levels, state, train_batch, valid_batch)
    updates, alpha_opt = levels.optimizers.alphas.update(
        result.alphas, state.alpha_opt, state.alphas
    )
    passes = [stats for stats, _ in result.train_aux]
    valid_stats, accuracy = result.valid_aux
    if result.own_weights:
        passes.append(valid_stats)
    state = state._replace(
        alphas=optax.apply_updates(state.alphas, updates),
        alpha_opt=alpha_opt,
        batch_stats=after_passes(state.batch_stats, passes),
    )
    return state, {"valid_loss": result.value, "valid_accuracy": accuracy}


def weights_step(
    levels: Levels, state: SearchState, train_batch: Batch
) -> tuple[SearchState, Metrics]:
    """Returns the state after one update of the weights, and train_loss, train_accuracy.

    Loss and accuracy are those before the update.
    """
    (value, (stats, accuracy)), grads = jax.value_and_grad(
        loss_at(levels, state), has_aux=True
    )(state.weights, state.alphas, train_batch)
    updates, weight_opt = levels.optimizers.weights.update(
        grads, state.weight_opt, state.weights
    )
    state = state._replace(
        weights=optax.apply_updates(state.weights, updates),
        weight_opt=weight_opt,
        batch_stats=stats,
    )
    return state, {"train_loss": value, "train_accuracy": accuracy}


def make_search_step(
    model: Model,
    strategy: OneShot,
    space: Space,
    optimizers: Optimizers,
    hypergradient: Callable[..., Hypergradient],
    *,
    order: str = "alphas_first",
    parts: int = 1,
) -> SearchStep:
    """Returns `search_step(state, train_batch, valid_batch) -> (state, metrics)`.

    Args:
        model: the supernet.
        strategy: the one-shot method.
        space: the search space.
        optimizers: of both levels.
        hypergradient: one of `bilevel.HYPERGRADIENTS`.
        order: "alphas_first" (DARTS) or "weights_first" (NAS-Bench-201's runs).
        parts: of a batch, computed one after another to save memory.

    The metrics are means over the batch, those of `weights_step` and `alphas_step`.

    Raises:
        UserError: there is no such order.
    """
    if order not in ORDERS:
        raise unknown("order", order, ORDERS)
    levels = Levels(model, strategy, space, optimizers, hypergradient, parts)

    def search_step(
        state: SearchState, train_batch: Batch, valid_batch: Batch
    ) -> tuple[SearchState, Metrics]:
        if order == "alphas_first":
            state, upper = alphas_step(levels, state, train_batch, valid_batch)
            state, lower = weights_step(levels, state, train_batch)
        else:
            state, lower = weights_step(levels, state, train_batch)
            state, upper = alphas_step(levels, state, train_batch, valid_batch)
        return state._replace(step=state.step + 1), lower | upper

    return search_step
