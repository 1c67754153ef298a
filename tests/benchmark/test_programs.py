"""The ways to use the devices are the same step: on one device they agree to rounding."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darts_jax.benchmark.programs import PROGRAMS, average_gradients, one_device
from darts_jax.benchmark.sizes import SIZES
from darts_jax.benchmark.tasks import make_task


def after_two_steps(devices: str, workload: str) -> Any:
    before = average_gradients() if devices == "pmap" else None
    program = PROGRAMS[devices](make_task(SIZES["tiny"], workload, before=before))
    state = program.state
    for _ in range(2):
        state, metrics = program.step(state, *program.batches)
    weights = jax.tree.map(lambda leaf: np.asarray(leaf).squeeze(), state.weights)
    return weights, float(metrics["train_loss"].mean())


@pytest.mark.parametrize(
    "workload",
    ["retrain_step", pytest.param("search_step_first_order", marks=pytest.mark.slow)],
)
def test_programs_agree_on_one_device(workload: str) -> None:
    weights, loss = after_two_steps("one", workload)
    for devices in ("jit", "pmap"):
        found, its_loss = after_two_steps(devices, workload)
        assert its_loss == pytest.approx(loss, rel=1e-5)
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5),
            found,
            weights,
        )


def test_each_of_several_seeds_is_the_step_alone() -> None:
    task = make_task(SIZES["tiny"], "retrain_step")
    both = one_device(task, 2)
    state, metrics = both.step(both.state, *both.batches)
    assert metrics["train_loss"].shape == (2,)
    for seed in range(2):
        alone = jax.tree.map(jnp.array, task.init(jax.random.key(seed)))
        alone, its_metrics = jax.jit(task.step)(alone, *task.batches)
        np.testing.assert_allclose(
            metrics["train_loss"][seed], its_metrics["train_loss"], rtol=1e-5
        )
        pairs = zip(
            jax.tree.leaves(state.weights), jax.tree.leaves(alone.weights), strict=True
        )
        for found, wanted in pairs:
            np.testing.assert_allclose(found[seed], wanted, rtol=1e-3, atol=1e-5)
