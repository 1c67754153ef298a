"""Keys: no two purposes, epochs or steps share one."""

import jax
import numpy as np

from darts_jax.data import batches
from darts_jax.training import randomness
from darts_jax.training.randomness import AUGMENT_TRAIN, AUGMENT_VALID, step_key


def test_purposes_are_all_different() -> None:
    purposes = [
        *(batches._ORDER, batches._IID),
        *(AUGMENT_TRAIN, AUGMENT_VALID, randomness.NETWORK),
    ]
    assert len(set(purposes)) == len(purposes)


def test_every_purpose_epoch_and_step_has_its_own_key() -> None:
    key = jax.random.key(0)
    keys = {
        np.asarray(jax.random.key_data(step_key(key, purpose, epoch, step))).tobytes()
        for purpose in (AUGMENT_TRAIN, AUGMENT_VALID)
        for epoch in range(3)
        for step in range(3)
    }
    assert len(keys) == 18


def test_compiled_equals_uncompiled() -> None:
    key = jax.random.key(5)
    found = jax.jit(step_key, static_argnums=1)(key, AUGMENT_TRAIN, 7, 3)
    assert (
        jax.random.key_data(found) == jax.random.key_data(step_key(key, 2, 7, 3))
    ).all()
