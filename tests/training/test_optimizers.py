"""Optimizers against PyTorch's update rules written out; schedules at their corners."""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from darts_jax.errors import UserError
from darts_jax.training.optimizers import (
    SCHEDULES,
    alpha_optimizer,
    clip_by_norm,
    learning_rate_schedule,
    weight_optimizer,
)


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def draw(seed: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"a": scale * rng.normal(size=(2, 3)), "b": scale * rng.normal(size=4)}


def run(optimizer: optax.GradientTransformation, grads: list[Any]) -> list[Any]:
    weights = jax.tree.map(jnp.asarray, draw(0))
    state, trace = optimizer.init(weights), []
    for grad in grads:
        updates, state = optimizer.update(grad, state, weights)
        weights = optax.apply_updates(weights, updates)
        trace.append(jax.tree.map(np.asarray, weights))
    return trace


def torch_sgd(
    grads: list[Any],
    learning_rates: list[float],
    *,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    clip: float,
) -> list[Any]:
    """torch.nn.utils.clip_grad_norm_, then torch.optim.SGD, in the order of train.py."""
    weights, buffers, trace = draw(0), {}, []
    for lr, grad in zip(learning_rates, grads, strict=True):
        norm = math.sqrt(sum(float((g**2).sum()) for g in grad.values()))
        factor = min(1.0, clip / (norm + 1e-6)) if clip else 1.0
        new = {}
        for name, w in weights.items():
            g = grad[name] * factor + weight_decay * w
            buffers[name] = momentum * buffers[name] + g if name in buffers else g
            new[name] = w - lr * (
                g + momentum * buffers[name] if nesterov else buffers[name]
            )
        weights = new
        trace.append(weights)
    return trace


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("clip", [0.0, 2.0])
@pytest.mark.parametrize("weight_decay", [0.0, 0.2])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_is_pytorchs(
    momentum: float, weight_decay: float, clip: float, nesterov: bool
) -> None:
    """Some gradients are longer than `clip`, some shorter; the rate changes on the way."""
    grads = [draw(seed, scale) for seed, scale in enumerate((1, 9, 0.1, 3, 0.2), 1)]
    rates = [0.1, 0.1, 0.07, 0.07, 0.03]
    options = {"momentum": momentum, "nesterov": nesterov}
    options |= {"weight_decay": weight_decay, "clip": clip}

    def schedule(step: jax.Array) -> jax.Array:
        return jnp.asarray(rates)[step]

    found = run(weight_optimizer(schedule, **options), grads)
    wanted = torch_sgd(grads, rates, **options)
    for one, other in zip(found, wanted, strict=True):
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12), one, other
        )


def test_defaults_are_the_references() -> None:
    grads = [draw(seed, 3.0) for seed in (1, 2)]
    wanted = torch_sgd(
        grads, [0.025] * 2, momentum=0.9, nesterov=False, weight_decay=3e-4, clip=5.0
    )
    found = run(weight_optimizer(0.025), grads)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12), found[-1], wanted[-1]
    )


@pytest.mark.parametrize("scale", [0.01, 10.0])
def test_clipping_has_pytorchs_epsilon(scale: float) -> None:
    grads = {"a": jnp.asarray([3.0, 0.0]) * scale, "b": jnp.asarray([4.0]) * scale}
    clipped, _ = clip_by_norm(5.0).update(grads, optax.EmptyState())
    norm = 5.0 * scale
    wanted = norm if scale < 1 else 5.0 * norm / (norm + 1e-6)
    np.testing.assert_allclose(optax.tree.norm(clipped), wanted, rtol=1e-13)


def test_virtual_step_can_use_the_real_optimizers_state() -> None:
    weights = jax.tree.map(jnp.asarray, draw(0))
    states = [weight_optimizer(0.1, clip=clip).init(weights) for clip in (0.0, 5.0)]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])


@pytest.mark.parametrize(
    "optimizer", [weight_optimizer(lambda _: 0.1), alpha_optimizer(0.1)]
)
def test_state_begins_as_optax_begins_it(
    optimizer: optax.GradientTransformation,
) -> None:
    """Made on the host, or in a compiled program: there optax's own init makes it."""
    weights = {"a": jnp.ones((2, 3), jnp.float32), "b": jnp.ones(4, jnp.float64)}
    found, wanted = optimizer.init(weights), jax.jit(optimizer.init)(weights)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    assert jax.tree.leaves(found)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        np.testing.assert_array_equal(one, other)


def test_adam_has_coupled_decay() -> None:
    """torch.optim.Adam(weight_decay=...): the decay goes through the moments."""
    grads = [draw(seed, scale) for seed, scale in enumerate((1, 1e-3, 5, 0.2), 1)]
    lr, b1, b2, decay = 0.01, 0.5, 0.999, 0.3
    weights = draw(0)
    first = second = dict.fromkeys(weights, 0.0)
    found = run(alpha_optimizer(lr, b1=b1, b2=b2, weight_decay=decay), grads)
    for step, grad in enumerate(grads, 1):
        g = {name: grad[name] + decay * weights[name] for name in grad}
        first = {n: b1 * first[n] + (1 - b1) * g[n] for n in g}
        second = {n: b2 * second[n] + (1 - b2) * g[n] ** 2 for n in g}
        weights = {
            n: weights[n]
            - lr
            * (first[n] / (1 - b1**step))
            / (np.sqrt(second[n] / (1 - b2**step)) + 1e-8)
            for n in g
        }
        for name, value in weights.items():
            np.testing.assert_allclose(found[step - 1][name], value, rtol=1e-12)


def rates(name: str, *, final: float = 0.1) -> list[float]:
    """The rate of every step of a run of 4 epochs of 3 steps."""
    schedule = learning_rate_schedule(
        name, initial=0.5, final=final, decay=0.9, num_epochs=4, steps_per_epoch=3
    )
    return [float(schedule(jnp.int32(step))) for step in range(12)]


@pytest.mark.parametrize("name", SCHEDULES)
def test_rate_is_constant_within_an_epoch(name: str) -> None:
    values = rates(name)
    assert values[0] == pytest.approx(0.5, rel=1e-12)
    for epoch in range(4):
        assert len(set(values[3 * epoch : 3 * epoch + 3])) == 1


def test_schedules() -> None:
    quarter = 0.1 + 0.4 * (1 + math.cos(math.pi / 4)) / 2
    last = 0.1 + 0.4 * (1 + math.cos(3 * math.pi / 4)) / 2
    assert rates("cosine")[::3] == pytest.approx([0.5, quarter, 0.3, last], rel=1e-6)
    powers = [0.5 * 0.9**epoch for epoch in range(4)]
    assert rates("exponential")[::3] == pytest.approx(powers, rel=1e-6)
    assert rates("constant")[::3] == [0.5] * 4


def test_cosine_of_the_published_search() -> None:
    """0.025 at epoch 0 of 50, towards 0.001: torch's CosineAnnealingLR."""
    schedule = learning_rate_schedule(
        "cosine",
        initial=0.025,
        final=0.001,
        decay=1.0,
        num_epochs=50,
        steps_per_epoch=390,
    )
    assert float(schedule(jnp.int32(0))) == pytest.approx(0.025, rel=1e-7)
    assert float(schedule(jnp.int32(25 * 390))) == pytest.approx(0.013, rel=1e-6)
    last = 0.001 + 0.024 * (1 + math.cos(math.pi * 49 / 50)) / 2
    assert float(schedule(jnp.int32(50 * 390 - 1))) == pytest.approx(last, rel=1e-5)


def test_unknown_schedule() -> None:
    with pytest.raises(UserError, match="did you mean 'cosine'"):
        learning_rate_schedule(
            "cosin", initial=1, final=0, decay=1, num_epochs=1, steps_per_epoch=1
        )
