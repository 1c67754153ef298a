"""Cross entropy, top k and entropy against their definitions in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darts_jax.training.metrics import correct_in_top, cross_entropy, entropy


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_cross_entropy(smoothing: float) -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 3, (6, 4)), np.asarray([0, 3, 2, 1, 1, 0])
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    target = np.full((6, 4), smoothing / 4)
    target[np.arange(6), labels] += 1 - smoothing
    with jax.enable_x64(True):
        found = cross_entropy(
            jnp.asarray(logits), jnp.asarray(labels), smoothing=smoothing
        )
        np.testing.assert_allclose(found, -(target * log_p).sum(-1), rtol=1e-12)


def test_cross_entropy_of_large_logits_is_finite() -> None:
    logits = jnp.asarray([[1e4, -1e4], [-1e4, 1e4]])
    found = cross_entropy(logits, jnp.asarray([0, 0]), smoothing=0.1)
    assert np.isfinite(found).all() and found[1] > 1e4


def test_top_k() -> None:
    logits = jnp.asarray([[1.0, 5.0, 3.0, 4.0, 2.0]] * 5)
    labels = jnp.arange(5)  # ranks 5, 1, 3, 2, 4
    for k, wanted in {
        1: [0, 1, 0, 0, 0],
        2: [0, 1, 0, 1, 0],
        4: [0, 1, 1, 1, 1],
        5: [1] * 5,
        9: [1] * 5,
    }.items():
        assert correct_in_top(logits, labels, k).tolist() == [bool(x) for x in wanted]


def test_of_equal_logits_the_lower_class_ranks_first() -> None:
    logits = jnp.asarray([[1.0, 2.0, 2.0, 1.0]])  # the ranks are 3, 1, 2, 4
    for label, rank in enumerate((3, 1, 2, 4)):
        found = [
            bool(correct_in_top(logits, jnp.asarray([label]), k)[0])
            for k in (1, 2, 3, 4)
        ]
        assert found == [rank <= k for k in (1, 2, 3, 4)]


def test_constant_outputs_are_right_by_chance() -> None:
    logits, labels = jnp.zeros((20, 10)), jnp.arange(20) % 10
    assert float(correct_in_top(logits, labels, 1).mean()) == pytest.approx(0.1)
    assert float(correct_in_top(logits, labels, 5).mean()) == pytest.approx(0.5)


def test_nan_is_never_right() -> None:
    """A diverged network must not score."""
    logits = jnp.full((3, 10), jnp.nan)
    assert not correct_in_top(logits, jnp.arange(3), 1).any()


def test_entropy() -> None:
    weights = jnp.asarray([[1.0, 0.0, 0.0, 0.0], [0.25] * 4, [0.5, 0.5, 0.0, 0.0]])
    wanted = (0 + np.log(4) + np.log(2)) / 3
    assert float(entropy(weights)) == pytest.approx(wanted, rel=1e-6)
    assert np.isfinite(jax.grad(lambda w: entropy(w))(weights[1:2])).all()
