"""The compiled step: several steps a call, as many as the config and the backend want."""

from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from darts_jax.training.compilation import compile_steps, steps_at_once
from darts_jax.training.parallel import one_device


@pytest.mark.parametrize("at_once", [1, 5])
def test_steps_of_a_call(at_once: int) -> None:
    """A loop on the device does what as many calls do; the state is donated."""

    def step(state: Any, sums: Any, order: Any, data: Any) -> Any:
        x = jnp.sin(state["x"] + order[state["step"]]) * data
        return {"x": x, "step": state["step"] + 1}, sums + x

    layout = one_device()
    program = compile_steps(step, layout, at_once)
    order, data = jnp.arange(10.0), jnp.float32(1.5)
    state = layout.put({"x": jnp.float32(0.1), "step": jnp.int32(0)})
    sums, x, total = layout.put(jnp.float32(0)), np.float32(0.1), 0.0
    counts = [5, 3, 2] if at_once == 5 else [1] * 10
    for count in counts:
        state, sums = program(state, sums, order, data, np.int32(count))
    for number in range(10):
        x = np.sin(x + np.float32(number)) * np.float32(1.5)
        total += x
    assert int(state["step"]) == 10
    assert float(state["x"]) == pytest.approx(float(x), rel=1e-5)
    assert float(sums) == pytest.approx(float(total), rel=1e-5)
    assert program._cache_size() == 1  # every count is the same program


def test_steps_at_once_by_backend_and_config() -> None:
    def chosen(steps: int, streamed: bool = False) -> int:
        fields = SimpleNamespace(
            parallel=SimpleNamespace(steps_per_call=steps), log_every_steps=50
        )
        return steps_at_once(fields, streamed)

    assert chosen(0) == 1 and chosen(7) == 7 and chosen(7, streamed=True) == 1
