"""What a run will take, before it runs: steps, parameters, multiply-adds, memory.

The training step is compiled, not run: the compiler plans every buffer ahead, so its figure
is what a step will allocate, and the program stays in the cache for the run itself.
"""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from darts_jax.models import count_multiply_adds, count_parameters
from darts_jax.training import loop, retrain, search, setup
from darts_jax.training.feed import StreamedFeed
from darts_jax.training.genotype_choice import choose_genotype
from darts_jax.training.parallel import Layout
from darts_jax.training.seeds import trains_together


def estimate_search(config: Any) -> list[str]:
    """Returns the lines of a search's dry run; raises UserError as the search would."""
    dataset = setup.read_dataset(config)
    together = trains_together(config, config.num_seeds, dataset.streamed)
    task = search.build(config, dataset, config.num_seeds if together else 0)
    state = jax.eval_shape(lambda: search.start(task, _seeds(config)))
    alphas = sum(leaf.size for leaf in jax.tree.leaves(_one(state.alphas, task)))
    edge_weights = jax.eval_shape(task.relax, _one(state.alphas, task))
    ones = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), edge_weights)
    image = dataset.train_images.shape[1:]
    return [
        f"search, {config.hypergradient}: {_images(task.train)} images for the weights, "
        f"{_images(task.valid)} for the alphas",
        *_common(config, task, state),
        f"parameters      {count_parameters(_one(state.weights, task)):,} weights, "
        f"{alphas:,} alphas",
        f"multiply-adds   {count_multiply_adds(task.model, image, ones) / 1e6:,.1f} M an "
        "image, forward",
        *_memory(search.plan_of(task), state, config.batch_size),
        *search.warnings(config),
    ]


def estimate_retraining(config: Any) -> list[str]:
    """Returns the lines of a retraining's dry run; raises UserError as it would."""
    genotype = choose_genotype(config)
    dataset = setup.read_dataset(config)
    together = trains_together(config, config.num_seeds, dataset.streamed)
    seeds = config.num_seeds if together else 0
    task = retrain.build(config, genotype, dataset, seeds)
    state = jax.eval_shape(lambda: retrain.start(task, _seeds(config)))
    image = dataset.train_images.shape[1:]
    return [
        f"retrain {config.genotype:.60}: {len(dataset.train_labels):,} images, "
        f"{len(dataset.test_labels):,} to test on",
        *_common(config, task, state),
        f"parameters      {count_parameters(_one(state.weights, task)):,} weights, "
        "without the auxiliary head",
        f"multiply-adds   {count_multiply_adds(task.model, image) / 1e6:,.1f} M an image, "
        "forward",
        *_memory(retrain.plan_of(task), state, config.batch_size),
    ]


def _seeds(config: Any) -> list[int]:
    return list(range(config.seed, config.seed + config.num_seeds))


def _one(tree: Any, task: Any) -> Any:
    """Returns the shapes of one run's part of a tree that may stack several."""
    cut = 1 if task.layout.seeds else 0
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape[cut:], leaf.dtype), tree
    )


def _images(split: Any) -> str:
    return f"{len(split.labels):,}"


def _common(config: Any, task: Any, state: Any) -> list[str]:
    mesh, shape = task.layout.mesh, task.dataset.train_images.shape[1:]
    device = mesh.devices.flat[0]
    seeds = f"{config.num_seeds} seeds" if config.num_seeds > 1 else "one seed"
    if config.num_seeds > 1:
        seeds += ", in one program" if task.layout.seeds else ", one after another"
    return [
        f"data            {config.dataset.name}, {'x'.join(map(str, shape))}, "
        f"{task.dataset.num_classes} classes"
        + (", streamed" if task.dataset.streamed else ""),
        f"devices         {mesh.size} x {device.device_kind}: "
        f"{mesh.shape['seed']} along seed, {mesh.shape['data']} along data; {seeds}",
        f"steps           {task.steps:,} an epoch, {task.steps * config.num_epochs:,} in "
        f"all; batch {config.batch_size}",
    ]


def _keys(layout: Layout) -> jax.Array:
    """Returns a key of each run's, as those of a state: what `order` looks at."""
    return layout.start(lambda key: key, range(max(layout.seeds, 1)))


def _memory(plan: loop.Plan, state: Any, size: int) -> list[str]:
    """Returns the lines on memory, a device; compiles the step."""
    sums = loop.initial_sums(plan)
    if isinstance(plan.feed, StreamedFeed):
        order, data = None, plan.feed.shapes(size)
        data = jax.tree.map(lambda leaf: _placed(leaf, plan.layout.batch), data)
    else:
        order = plan.feed.order(state._replace(key=_keys(plan.layout)), 0)
        order, data = plan.feed.arguments(order)
    # As the run's own state lies: another sharding would be another program.
    state = jax.tree.map(lambda leaf: _placed(leaf, plan.layout.state), state)
    started = time.perf_counter()
    lowered = plan.step.lower(state, sums, order, data, np.int32(1))  # type: ignore
    traced = time.perf_counter()
    analysis = lowered.compile().memory_analysis()
    compiled = time.perf_counter()
    held, step = analysis.argument_size_in_bytes, analysis.temp_size_in_bytes
    # What is updated in place needs no room of its own.
    out = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    total = held + step + max(out, 0)
    return [
        f"memory          {_bytes(total)} a device: state and data {_bytes(held)}, "
        f"a step's own {_bytes(step)}",
        f"compilation     {traced - started:.1f} s to trace, {compiled - traced:.1f} s to "
        "compile or to load; kept for the run",
    ]


def _placed(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _bytes(number: int) -> str:
    return (
        f"{number / 2**30:,.2f} GiB"
        if number >= 2**30
        else f"{number / 2**20:,.1f} MiB"
    )
