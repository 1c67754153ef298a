"""Devices: one mesh with the axes ("seed", "data"), and how a run's arrays lie on it.

A batch is split along "data", the runs of several seeds along "seed"; weights, alphas and
images are whole on every device of their seed. `jit` follows these shardings, so one device,
eight, or eight of several processes run the same program text, batch norm is over the whole
batch, and gradients are summed by the compiler. Every process computes the same rows and
decisions; the first one writes (`leads`).
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from darts_jax.errors import UserError

SEED, DATA = "seed", "data"
AUTO = (AxisType.Auto, AxisType.Auto)  # the compiler completes the shardings


class Layout(NamedTuple):
    """How arrays lie on the mesh.

    seeds: how many runs one program trains; their states are stacked on a first axis.
    0: one run, and no such axis.
    """

    mesh: Mesh
    seeds: int = 0

    @property
    def everywhere(self) -> NamedSharding:
        """Whole on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def state(self) -> NamedSharding:
        """Of states and sums: the stacked seeds are split, all else is whole."""
        axes = (SEED,) if self.seeds else ()
        return NamedSharding(self.mesh, PartitionSpec(*axes))

    @property
    def batch(self) -> NamedSharding:
        """Of a batch: its first axis is split."""
        return NamedSharding(self.mesh, PartitionSpec(DATA))

    def split(self, batch: Any) -> Any:
        """Splits a batch inside a compiled program."""
        return jax.lax.with_sharding_constraint(batch, self.batch)

    def per_seed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns the function mapped over the seeds of its first argument, if stacked."""
        if not self.seeds:
            return function

        def mapped(first: Any, *shared: Any) -> Any:
            axes = (0, *(None for _ in shared))
            return jax.vmap(function, axes, spmd_axis_name=SEED)(first, *shared)

        return mapped

    def start(self, initialise: Callable[[Any], Any], seeds: Sequence[int]) -> Any:
        """Returns `initialise(key)` of the seeds' keys: a state, or a stack of them.

        It is not compiled: the compiler takes longer for the thousand leaves of a state than
        for a training step.
        """
        return self.stack([initialise(jax.random.key(seed)) for seed in seeds])

    def put(self, tree: Any, sharding: NamedSharding | None = None) -> Any:
        """Copies a tree that every process has whole to the devices, as `state` is."""
        place = partial(_put, sharding=sharding or self.state)
        return jax.tree.map(place, tree)

    def put_part(self, tree: Any) -> Any:
        """Copies this process's part of a batch to its devices."""
        place = partial(jax.make_array_from_process_local_data, self.batch)
        return jax.tree.map(place, tree)

    def members(self, state: Any) -> list[Any]:
        """Returns the state of every run, whole on every device."""
        if not self.seeds:
            return [state]

        return [_member(state, np.int32(i), self.everywhere) for i in range(self.seeds)]

    def stack(self, states: Sequence[Any]) -> Any:
        """Returns what `members` takes apart, on the devices."""
        if not self.seeds:
            return self.put(states[0])
        return self.put(jax.tree.map(lambda *leaves: jnp.stack(leaves), *states))


@partial(jax.jit, static_argnums=2)
def _member(state: Any, index: Any, sharding: NamedSharding) -> Any:
    one = jax.tree.map(lambda leaf: leaf[index], state)
    return jax.lax.with_sharding_constraint(one, sharding)


def _put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    if sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _put(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, lambda i: whole[i])


def make_layout(config: Any, seeds: int = 0) -> Layout:
    """Returns the layout of a run, or of the runs of several seeds in one program.

    config: of the run: batch_size, accumulate, batch_norm.groups, parallel.

    Raises:
        UserError: there are not so many devices, or seeds or batch do not divide.
    """
    devices = _devices(config.parallel.devices)
    along_seeds = config.parallel.seed_devices if seeds else 1
    if seeds and seeds < config.num_seeds:
        devices, along_seeds = _for_the_rest(config, seeds, devices)
    elif not along_seeds:
        along_seeds = math.gcd(seeds, len(devices))
    if seeds % along_seeds or len(devices) % along_seeds:
        divisors = _divisors(math.gcd(seeds, len(devices)))
        raise UserError(
            f"config.parallel.seed_devices={along_seeds} does not divide {seeds} seeds and "
            f"{len(devices)} devices; choose {_any_of(divisors)}"
        )
    along_data = len(devices) // along_seeds
    check_batch(config, along_data)
    grid = np.array(devices).reshape(along_seeds, along_data)
    mesh = Mesh(grid, (SEED, DATA), axis_types=AUTO)
    return Layout(mesh, seeds)


def _for_the_rest(config: Any, seeds: int, devices: list[Any]) -> tuple[list[Any], int]:
    """Returns devices and how many lie along the seeds, where others have ended before them.

    They go on with fewer devices rather than be refused for a batch that was right before.
    """
    fewest = 1 if jax.process_count() == 1 else len(devices)
    for number in range(len(devices), fewest, -1):
        along_seeds = math.gcd(seeds, number)
        if config.batch_size % _unit(config, number // along_seeds) == 0:
            return devices[:number], along_seeds
    return devices[:fewest], math.gcd(seeds, fewest)


def one_device() -> Layout:
    """Returns the layout of one run on the first device."""
    return _of_one_run(jax.devices()[:1])


def every_device() -> Layout:
    """Returns the layout of an evaluation, which fills its batches up to any number."""
    return _of_one_run(jax.local_devices())


def _of_one_run(devices: list[Any]) -> Layout:
    grid = np.array(devices).reshape(1, -1)
    return Layout(Mesh(grid, (SEED, DATA), axis_types=AUTO))


def _devices(wanted: int) -> list[Any]:
    devices = jax.devices()
    if wanted > len(devices):
        raise UserError(
            f"config.parallel.devices={wanted}, but there are {len(devices)}; choose at "
            f"most {len(devices)}, or 0 for all"
        )
    if wanted not in (0, len(devices)) and jax.process_count() > 1:
        raise UserError(
            f"config.parallel.devices={wanted}: several processes use all of their "
            f"{len(devices)} devices; choose 0"
        )
    return devices[: wanted or len(devices)]


def check_batch(config: Any, devices: int) -> None:
    """Raises UserError, with the nearest sizes, where a batch cannot be split evenly."""
    size, parts, groups = (
        config.batch_size,
        config.accumulate,
        config.batch_norm.groups,
    )
    unit = _unit(config, devices)
    if size % unit == 0:
        return
    among = [
        text
        for number, text in (
            (parts, f"accumulate={parts} parts"),
            (devices, f"{devices} devices"),
            (groups, f"batch_norm.groups={groups}"),
        )
        if number > 1
    ]
    below, above = size // unit * unit, -(-size // unit) * unit
    raise UserError(
        f"config.batch_size={size} does not divide among {' and '.join(among)}: choose "
        f"{_any_of([n for n in (below, above) if n])}"
    )


def _unit(config: Any, devices: int) -> int:
    """Returns what a batch has to be a multiple of."""
    return config.accumulate * math.lcm(devices, config.batch_norm.groups)


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _any_of(numbers: Sequence[int]) -> str:
    return " or ".join(map(str, numbers))


def process() -> tuple[int, int]:
    """Returns (index, count) of this process among those that share the run."""
    return jax.process_index(), jax.process_count()


def leads() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process; all of them have to ask."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).any())
