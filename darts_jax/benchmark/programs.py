"""A task as a compiled program: on one device, or on all of them by `jit` or by `pmap`.

`pmap` is here only to be compared with: a device's part of the batch has its own batch norm,
and the gradients are averaged by hand, before either optimizer sees them.
"""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from darts_jax.benchmark.tasks import Task
from darts_jax.training.parallel import make_layout

DEVICES = "devices"  # pmap's axis


class Program(NamedTuple):
    """`step(state, *batches) -> (state, metrics)`, not compiled yet, and its arguments."""

    step: Any
    state: Any
    batches: tuple[Any, ...]


def average_gradients() -> optax.GradientTransformation:
    """Returns what makes an optimizer see the mean gradient of all devices under pmap."""
    return optax.stateless(lambda grads, _: jax.lax.pmean(grads, DEVICES))


def one_device(task: Task, seeds: int = 1) -> Program:
    """The program of a single device, of several seeds a state and metrics for each."""
    step, keys = task.step, [jax.random.key(seed) for seed in range(seeds)]
    # As in runs not compiled: that takes longer than compiling the step.
    states = [jax.tree.map(jnp.array, task.init(key)) for key in keys]
    state = states[0]
    if seeds > 1:
        state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        step = jax.vmap(task.step, (0, *(None for _ in task.batches)))
    return Program(jax.jit(step, donate_argnums=0), state, task.batches)


def by_jit(task: Task) -> Program:
    """`jit` over all devices, as runs have it: global batch norm, sums by the compiler."""
    config = SimpleNamespace(
        batch_size=len(task.batches[0].labels),
        accumulate=1,
        batch_norm=SimpleNamespace(groups=1),
        parallel=SimpleNamespace(devices=0, seed_devices=0),
    )
    layout = make_layout(config)
    state = layout.start(task.init, [0])

    @partial(jax.jit, donate_argnums=0, out_shardings=layout.everywhere)
    def step(state: Any, *batches: Any) -> Any:
        return task.step(state, *map(layout.split, batches))

    return Program(step, state, layout.put(task.batches, layout.batch))


def by_pmap(task: Task) -> Program:
    """`pmap` over all local devices."""
    count = jax.local_device_count()
    keys = jnp.stack([jax.random.key(0)] * count)

    def split(leaf: jax.Array) -> jax.Array:
        return leaf.reshape(count, -1, *leaf.shape[1:])

    step = jax.pmap(task.step, axis_name=DEVICES, donate_argnums=0)
    return Program(step, jax.pmap(task.init)(keys), jax.tree.map(split, task.batches))


PROGRAMS: dict[str, Callable[[Task], Program]] = {
    "one": one_device,
    "jit": by_jit,
    "pmap": by_pmap,
}
