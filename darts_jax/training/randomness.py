"""Where randomness comes from: one key a run, folded, never advanced.

A key for a purpose is `fold_in(fold_in(fold_in(key, purpose), epoch), step)`, so everything
random is a function of (seed, epoch, step) and a resumed run needs no generator state. The
purposes 0 and 1 are the orders of examples in data/batches.py.
"""

import jax

AUGMENT_TRAIN, AUGMENT_VALID, NETWORK = 2, 3, 4


def step_key(
    key: jax.Array, purpose: int, epoch: jax.Array | int, step: jax.Array | int
) -> jax.Array:
    """Returns the key of one purpose at one step of an epoch."""
    key = jax.random.fold_in(key, purpose)
    return jax.random.fold_in(jax.random.fold_in(key, epoch), step)
