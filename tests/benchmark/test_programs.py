"""The ways to use the devices are the same step: on one device they agree to rounding."""

from typing import Any

import jax
import numpy as np
import pytest

from darts_jax.benchmark.programs import PROGRAMS, average_gradients
from darts_jax.benchmark.sizes import SIZES
from darts_jax.benchmark.tasks import make_task


def after_two_steps(devices: str, workload: str) -> Any:
    before = average_gradients() if devices == "pmap" else None
    program = PROGRAMS[devices](make_task(SIZES["tiny"], workload, "fused", before))
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
