"""Which images make a batch: pure functions of (key, epoch, step), so a resume is exact.

Indices for a whole epoch are drawn at once: a permutation of 50,000 costs as much as many
small training steps, so it must not be repeated in each of them.
"""

from functools import partial

import jax
import jax.numpy as jnp

from darts_jax.errors import UserError

# Folded into the key first. Without it the permutation of an epoch and the batch of one of
# its steps could be sorted by the very same random bits.
_ORDER, _IID = 0, 1


@partial(jax.jit, static_argnames="num_examples")
def epoch_order(key: jax.Array, epoch: jax.Array | int, num_examples: int) -> jax.Array:
    """Returns a permutation of the examples, int32 `[num_examples]`, new in every epoch."""
    key = jax.random.fold_in(jax.random.fold_in(key, _ORDER), epoch)
    return jax.random.permutation(key, num_examples).astype(jnp.int32)


@partial(jax.jit, static_argnames=("num_examples", "batch_size"))
def epoch_batches(
    key: jax.Array, epoch: jax.Array | int, num_examples: int, batch_size: int
) -> jax.Array:
    """Returns int32 `[num_examples // batch_size, batch_size]`: `epoch_order` in rows.

    Every example at most once an epoch; the remainder is dropped. Raises `UserError` when
    the batch is larger than the data.
    """
    _check(num_examples, batch_size)
    steps = num_examples // batch_size
    order = epoch_order(key, epoch, num_examples)
    return order[: steps * batch_size].reshape(steps, batch_size)


@partial(jax.jit, static_argnames=("num_examples", "batch_size", "steps"))
def iid_batches(
    key: jax.Array,
    epoch: jax.Array | int,
    num_examples: int,
    batch_size: int,
    steps: int,
) -> jax.Array:
    """Returns int32 `[steps, batch_size]`: in every step a fresh random subset of the data.

    What the reference does for the upper level (`next(iter(valid_queue))` each step):
    steps are independent, within a batch no example comes twice. A row depends only on
    (key, epoch, step). By Floyd's algorithm (Bentley and Floyd 1987): for j = N-B .. N-1
    draw t from 0..j and take t, or j if t is taken already. All subsets are equally likely,
    at a cost that does not grow with the data. Raises `UserError` as `epoch_batches` does.
    """
    _check(num_examples, batch_size)
    key = jax.random.fold_in(jax.random.fold_in(key, _IID), epoch)
    keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(steps))
    last = jnp.arange(num_examples - batch_size, num_examples, dtype=jnp.int32)
    draws = jax.vmap(lambda k: jax.random.randint(k, (batch_size,), 0, last + 1))(keys)

    def choose(i: jax.Array, chosen: jax.Array) -> jax.Array:
        draw = draws[:, i]
        taken = (chosen == draw[:, None]).any(axis=1)
        return chosen.at[:, i].set(jnp.where(taken, last[i], draw))

    none = jnp.full((steps, batch_size), -1, jnp.int32)
    return jax.lax.fori_loop(0, batch_size, choose, none)


def _check(num_examples: int, batch_size: int) -> None:
    if not 0 < batch_size <= num_examples:
        raise UserError(
            f"batch_size={batch_size} must lie between 1 and the {num_examples} images "
            "it is drawn from"
        )
