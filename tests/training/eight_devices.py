"""Run by test_parallel.py as a process of its own: one device against eight, in one process.

Prints a JSON object of the largest differences; the device count must be set before jax
starts.
"""

import json
import os
import sys
from types import SimpleNamespace
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from darts_jax.bilevel import HYPERGRADIENTS  # noqa: E402
from darts_jax.models import make_network, make_supernet  # noqa: E402
from darts_jax.one_shot import ONE_SHOT  # noqa: E402
from darts_jax.spaces import SPACES, random_genotype  # noqa: E402
from darts_jax.training.compilation import compile_steps  # noqa: E402
from darts_jax.training.optimizers import (  # noqa: E402
    alpha_optimizer,
    weight_optimizer,
)
from darts_jax.training.parallel import make_layout  # noqa: E402
from darts_jax.training.retrain_step import (  # noqa: E402
    initial_retrain_state,
    make_retrain_step,
)
from darts_jax.training.search_step import (  # noqa: E402
    Optimizers,
    initial_search_state,
    make_search_step,
)
from darts_jax.types import Batch  # noqa: E402

STEPS, SIZE, SHAPE = 3, 16, (8, 8, 3)
PRIMITIVES = ("none", "max_pool_3x3", "skip_connect", "sep_conv_3x3")
SPACE = SPACES["tiny"](num_nodes=1, primitives=PRIMITIVES)


def layout_of(
    devices: int, seeds: int = 0, seed_devices: int = 0, groups: int = 1
) -> Any:
    parallel = SimpleNamespace(devices=devices, seed_devices=seed_devices)
    config = SimpleNamespace(
        batch_size=SIZE,
        accumulate=1,
        num_seeds=seeds,
        batch_norm=SimpleNamespace(groups=groups),
        parallel=parallel,
    )
    return make_layout(config, seeds)


def batches(dtype: Any, parts: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    names = ("train", "valid")[:parts]
    return {
        name: Batch(
            rng.normal(size=(STEPS, SIZE, *SHAPE)).astype(dtype),
            rng.integers(0, 5, (STEPS, SIZE)).astype(np.int32),
        )
        for name in names
    }


def search(hypergradient: str, groups: int, implementation: str) -> tuple[Any, Any]:
    model = make_supernet(
        SPACE,
        image_shape=SHAPE,
        num_classes=5,
        num_cells=2,
        channels=2,
        norm_groups=groups,
        implementation=implementation,
    )
    optimizers = Optimizers(
        weight_optimizer(0.05), weight_optimizer(0.05, clip=0), alpha_optimizer(0.01)
    )
    strategy = ONE_SHOT["darts"]

    def initialise(key: jax.Array) -> Any:
        return initial_search_state(
            model, strategy, SPACE, optimizers, key, alpha_scale=0.1
        )

    step = make_search_step(
        model, strategy, SPACE, optimizers, HYPERGRADIENTS[hypergradient]
    )
    return initialise, step


def retraining(groups: int, implementation: str) -> tuple[Any, Any]:
    genotype = random_genotype(SPACE, np.random.default_rng(1))
    model = make_network(
        genotype,
        image_shape=SHAPE,
        num_classes=5,
        num_cells=2,
        channels=2,
        norm_groups=groups,
        implementation=implementation,
    )
    optimizer = weight_optimizer(0.05)
    step = make_retrain_step(model, optimizer, drop_path=lambda _: 0.2)
    return lambda key: initial_retrain_state(model, optimizer, key), step


def train(
    kind: str,
    dtype: Any,
    layout: Any,
    seeds: list[int],
    groups: int,
    implementation: str = "plain",
) -> Any:
    """Returns the states of the seeds after three steps, and the sums of their metrics."""
    if kind == "retrain":
        initialise, one = retraining(groups, implementation)
        data, names = batches(dtype, 1), ("train_loss", "train_accuracy")
    else:
        initialise, one = search(kind, groups, implementation)
        data, names = batches(dtype, 2), ("train_loss", "valid_loss")

    def step(state: Any, sums: Any, order: None, data: Any) -> Any:
        some = [
            layout.split(jax.tree.map(lambda a: a[state.step], batch))
            for batch in data.values()
        ]
        state, metrics = one(state, *some)
        return state, {name: sums[name] + metrics[name] for name in sums}

    exact = jax.tree.map(
        lambda leaf: leaf.astype(dtype) if leaf.dtype == jnp.float32 else leaf,
        layout.start(initialise, seeds),
    )
    state = layout.put(exact)
    shape = (len(seeds),) if layout.seeds else ()
    sums = layout.put({name: jnp.zeros(shape, dtype) for name in names})
    program = compile_steps(step, layout, 1)
    data = layout.put(data, layout.everywhere)
    for _ in range(STEPS):
        state, sums = program(state, sums, None, data, np.int32(1))
    found = [
        jax.tree.map(np.asarray, member._replace(key=None))
        for member in layout.members(state)
    ]
    return found, layout.members(sums)


def difference(found: Any, wanted: Any) -> float:
    """Returns the largest distance of two leaves over the norm of the second."""
    largest = 0.0
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        x, y = np.float64(x), np.float64(y)
        largest = max(
            largest, float(np.linalg.norm(x - y) / (np.linalg.norm(y) + 1e-8))
        )
    return largest


def main(kind: str, precision: str, case: str) -> None:
    jax.config.update("jax_enable_x64", precision == "float64")
    dtype = jnp.dtype(precision)
    assert jax.device_count() == 8
    if case == "data":
        wanted = train(kind, dtype, layout_of(1), [3], 1)
        found = train(kind, dtype, layout_of(8), [3], 1)
    elif case == "merged":
        wanted = train(kind, dtype, layout_of(1), [3], 1)  # the plain operations
        found = train(kind, dtype, layout_of(8), [3], 1, "merged")
    elif case == "groups":
        wanted = train(kind, dtype, layout_of(1, groups=4), [3], 4)
        found = train(kind, dtype, layout_of(8, groups=4), [3], 4)
        plain = train(kind, dtype, layout_of(1), [3], 1)
        assert difference(found, plain) > 1e-3  # the groups do something
    else:  # four seeds on a mesh of 4 x 2, each against itself alone
        found = train(kind, dtype, layout_of(8, 4), [3, 4, 5, 6], 1)
        alone = [train(kind, dtype, layout_of(1), [seed], 1) for seed in (3, 4, 5, 6)]
        wanted = tuple([one[i][0] for one in alone] for i in (0, 1))
        assert layout_of(8, 4).mesh.shape == {"seed": 4, "data": 2}
        assert difference(found[0][0], found[0][1]) > 1e-2  # the seeds differ
    print(json.dumps({"difference": difference(found, wanted)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
