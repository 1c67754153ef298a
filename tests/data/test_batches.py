"""Batches are functions of (key, epoch, step), and what they promise about repetition."""

import time

import jax
import numpy as np
import pytest

from darts_jax.data import epoch_batches, epoch_order, iid_batches
from darts_jax.errors import UserError

KEY = jax.random.key(3)


def test_an_epoch_is_a_permutation_and_no_two_are_alike() -> None:
    orders = [np.asarray(epoch_order(KEY, epoch, 101)) for epoch in range(3)]
    for order in orders:
        assert order.dtype == np.int32
        np.testing.assert_array_equal(np.sort(order), np.arange(101))
    assert len({order.tobytes() for order in orders}) == 3
    assert not np.array_equal(orders[0], epoch_order(jax.random.key(4), 0, 101))


def test_epoch_batches_are_rows_of_the_order() -> None:
    order = np.asarray(epoch_order(KEY, 5, 101))
    batches = np.asarray(epoch_batches(KEY, 5, 101, 25))
    np.testing.assert_array_equal(batches, order[:100].reshape(4, 25))
    assert epoch_batches(KEY, 5, 25, 25).shape == (1, 25)


def test_iid_batches_have_no_repetition_within_and_all_between() -> None:
    batches = np.asarray(iid_batches(KEY, 0, 20, 15, 50))
    assert batches.shape == (50, 15) and batches.dtype == np.int32
    assert batches.min() == 0 and batches.max() == 19
    assert all(len(set(row)) == 15 for row in batches.tolist())
    assert len({row.tobytes() for row in np.sort(batches)}) > 45


def test_iid_batches_are_uniform() -> None:
    """Each example, and each pair of examples, is equally likely to be in a batch."""
    num, size, steps = 6, 3, 20_000
    batches = np.asarray(iid_batches(KEY, 1, num, size, steps))
    member = np.zeros((steps, num), bool)
    np.put_along_axis(member, batches, True, axis=1)
    together = (member.T.astype(float) @ member) / steps
    pair = size * (size - 1) / (num * (num - 1))
    expected = np.where(np.eye(num, dtype=bool), size / num, pair)
    np.testing.assert_allclose(together, expected, atol=0.02)


def test_an_iid_batch_depends_on_key_epoch_and_step_only() -> None:
    long = np.asarray(iid_batches(KEY, 2, 1000, 8, 30))
    np.testing.assert_array_equal(long[:7], iid_batches(KEY, 2, 1000, 8, 7))
    assert not np.array_equal(long, iid_batches(KEY, 3, 1000, 8, 30))
    assert not np.array_equal(long, iid_batches(jax.random.key(0), 2, 1000, 8, 30))


def test_an_epoch_may_be_traced() -> None:
    """A loop over epochs compiles once."""
    traced = jax.jit(lambda epoch: epoch_batches(KEY, epoch, 50, 10))(4)
    np.testing.assert_array_equal(traced, epoch_batches(KEY, 4, 50, 10))


def test_train_and_valid_batches_are_not_tied() -> None:
    """From one key, the order of an epoch says nothing about its iid batches."""
    order = np.asarray(epoch_order(KEY, 0, 1000))
    place = np.argsort(order)
    for row in np.asarray(iid_batches(KEY, 0, 1000, 200, 5)):
        assert abs(place[row].mean() - 499.5) < 100  # five standard deviations


@pytest.mark.parametrize("batch_size", [0, -1, 11])
def test_impossible_batches(batch_size: int) -> None:
    with pytest.raises(UserError, match=f"batch_size={batch_size}"):
        epoch_batches(KEY, 0, 10, batch_size)
    with pytest.raises(UserError, match="10 images"):
        iid_batches(KEY, 0, 10, batch_size, 2)


def test_a_whole_epoch_is_cheap() -> None:
    """25,000 images, 390 steps: milliseconds are usual, 2 s mean that something broke."""
    iid_batches(KEY, 0, 25_000, 64, 390).block_until_ready()
    start = time.perf_counter()
    iid_batches(KEY, 1, 25_000, 64, 390).block_until_ready()
    assert time.perf_counter() - start < 2
