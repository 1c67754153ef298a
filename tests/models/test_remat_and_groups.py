"""Rematerialised cells, batch norm by parts, and our kernels where there are devices."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darts_jax.kernels.compiled import kernels, why_not
from darts_jax.models import depthwise, make_network, make_supernet
from darts_jax.models.normalise import batch_norm
from darts_jax.spaces import SPACES, random_genotype
from darts_jax.types import Model

SPACE = SPACES["tiny"](num_nodes=1)
NB201 = SPACES["nas_bench_201"](
    num_nodes=2, primitives=("none", "skip_connect", "nor_conv_1x1", "avg_pool_3x3")
)
SIZE = {"image_shape": (8, 8, 3), "num_classes": 5, "num_cells": 2, "channels": 2}
needs_kernels = pytest.mark.skipif(kernels() is None, reason=f"no kernels: {why_not()}")


def edge_weights(space: Any) -> dict[str, jax.Array]:
    draw = np.random.default_rng(3).normal
    shape = (space.num_edges, len(space.primitives))
    return {k: jax.nn.softmax(jnp.asarray(draw(size=shape))) for k in space.cell_kinds}


def images(number: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).normal(size=(number, *shape)))


def start(model: Model, seed: int = 0) -> Any:
    """Weights and statistics in the widest type that is on."""
    found = model.init(jax.random.key(seed))
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(float)), found)


def assert_close(found: Any, wanted: Any, tolerance: float = 1e-10) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        scale = max(1e-12, float(jnp.abs(b).max()))
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale)


def _with_auxiliary(**options: Any) -> tuple[Model, jax.Array, tuple[Any, ...]]:
    """The smallest network with an auxiliary head; its images and its drop path."""
    genotype = random_genotype(SPACE, np.random.default_rng(0))
    size = SIZE | {"image_shape": (16, 16, 3), "num_cells": 1}
    model = make_network(genotype, **size, auxiliary=True, **options)
    return model, images(4, 16, 16, 3), (jnp.full((), 0.3),)


def _supernet(**options: Any) -> tuple[Model, jax.Array, tuple[Any, ...]]:
    model = make_supernet(SPACE, **SIZE | {"num_cells": 1}, **options)
    return model, images(4, 8, 8, 3), (edge_weights(SPACE),)


def _nas_bench_201(**options: Any) -> tuple[Model, jax.Array, tuple[Any, ...]]:
    model = make_supernet(NB201, **SIZE | {"num_cells": 1}, **options)
    return model, images(4, 8, 8, 3), (edge_weights(NB201),)


# --- remat


def test_remat_with_an_auxiliary_head_and_drop_path(float64: None) -> None:
    found = {}
    for remat in (False, True):
        model, x, rest = _with_auxiliary(remat=remat)
        weights, stats = start(model)

        def value(weights: Any, model=model, stats=stats, x=x, rest=rest) -> Any:
            key = jax.random.key(2)
            logits, new = model.apply(weights, stats, x, *rest, train=True, key=key)
            return sum(jnp.sin(y).sum() for y in logits), (logits, new)

        found[remat] = jax.jit(jax.value_and_grad(value, has_aux=True))(weights)
    assert_close(found[True], found[False])


@pytest.mark.parametrize(
    "build", [_supernet, pytest.param(_nas_bench_201, marks=pytest.mark.slow)]
)
def test_remat_under_vmap(build: Any, float64: None) -> None:
    """Two seeds at once, recomputed, against one after another, kept."""
    found = {}
    for remat in (False, True):
        model, x, rest = build(remat=remat)
        seeds = [start(model, seed) for seed in (0, 1)]

        def value(weights: Any, stats: Any, mixed: Any, model=model, x=x) -> Any:
            logits, new = model.apply(weights, stats, x, mixed, train=True)
            return jnp.sin(logits).sum(), (logits, new)

        both = jax.value_and_grad(value, (0, 2), has_aux=True)
        if remat:
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *seeds)
            found[remat] = jax.jit(jax.vmap(both, (0, 0, None)))(*stacked, *rest)
        else:
            run = jax.jit(both)
            each = [run(*seed, *rest) for seed in seeds]
            found[remat] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    assert_close(found[True], found[False])


# --- norm_groups


def test_norm_groups_of_a_supernet_are_its_parts_alone(float64: None) -> None:
    """Logits are those of each part alone, statistics the means of theirs."""
    x, mixed = images(6, 8, 8, 3), edge_weights(SPACE)
    one, three = (make_supernet(SPACE, **SIZE, norm_groups=g) for g in (1, 3))
    weights, stats = start(one)
    logits, new = jax.jit(functools.partial(three.apply, train=True))(
        weights, stats, x, mixed
    )
    alone = jax.jit(functools.partial(one.apply, train=True))
    parts = [alone(weights, stats, x[i : i + 2], mixed) for i in (0, 2, 4)]
    assert_close(logits, jnp.concatenate([part for part, _ in parts]))
    assert_close(new, jax.tree.map(lambda *s: sum(s) / 3, *(s for _, s in parts)))


def test_norm_groups_are_of_training_only() -> None:
    texts = []
    for groups in (1, 4):  # 4 would not divide the 6 images
        model = make_supernet(SPACE, **SIZE, evaluation="batch", norm_groups=groups)
        apply = functools.partial(model.apply, train=False)
        arguments = (*start(model), images(6, 8, 8, 3), edge_weights(SPACE))
        texts.append(str(jax.make_jaxpr(apply)(*arguments)))
    assert texts[0] == texts[1]


@needs_kernels
def test_norm_groups_by_our_kernels(
    float64: None, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = jnp.asarray(3 + rng.normal(size=(2, 3, 6, 5, 4)))
    scale, bias = jnp.asarray(rng.normal(size=(2, 2, 3)))
    weights = jnp.asarray(rng.normal(size=x.shape))
    direction = tuple(jnp.asarray(rng.normal(size=a.shape)) for a in (x, scale, bias))

    def all_of() -> Any:
        def value(*arguments: Any) -> Any:
            y, *moments = batch_norm(*arguments, groups=3)
            return jnp.sum(jnp.tanh(y) * weights), (y, moments)

        gradient = jax.grad(value, (0, 1, 2), has_aux=True)
        return jax.jvp(gradient, (x, scale, bias), direction)

    found = all_of()
    monkeypatch.setattr(depthwise, "kernels", lambda _: None)
    assert_close(found, all_of())


# --- several devices


def _native_calls(monkeypatch: pytest.MonkeyPatch, devices: int) -> int:
    """How often a training step's gradient calls our kernels."""
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    model = make_supernet(SPACE, **SIZE)
    weights, stats = start(model)

    def value(weights: Any) -> jax.Array:
        return model.apply(
            weights, stats, images(2, 8, 8, 3), edge_weights(SPACE), train=True
        )[0].sum()

    text = str(jax.make_jaxpr(jax.grad(value))(weights))
    return sum(text.count(name) for name in ("ffi_call", "depthwise_", "max_pool"))


@needs_kernels
def test_our_kernels_are_for_one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert depthwise.native() and _native_calls(monkeypatch, 1)
    assert not _native_calls(monkeypatch, 2)
    assert not depthwise.native() and depthwise.choice() == "banded"


SPLIT = """
import json, re, jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from darts_jax.models.normalise import batch_norm
mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
split = NamedSharding(mesh, PartitionSpec(None, None, "data"))
x, gradient = np.random.default_rng(0).normal(size=(2, 1, 3, 8, 4, 4)).astype("float32")
ones = jnp.ones((1, 3))
found = {}
for groups in (1, 4):
    def both(x, gradient):
        y, pull = jax.vjp(lambda x: batch_norm(x, ones, ones, groups)[0], x)
        return y, pull(gradient)[0]
    program = jax.jit(both, in_shardings=split, out_shardings=split)
    text = program.lower(x, gradient).compile().as_text()
    moves = re.findall("all-reduce|all-gather|all-to-all|collective-permute", text)
    pairs = zip(program(x, gradient), jax.jit(both)(x, gradient))
    apart = max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)
    found[groups] = [len(moves), apart]
print(json.dumps(found))
"""


def test_a_group_a_device_moves_nothing(repository: Path) -> None:
    """With the batch split among four devices the parts' moments need no other device."""
    flags = "--xla_force_host_platform_device_count=4"
    done = subprocess.run(
        [sys.executable, "-c", SPLIT],
        env=os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["1"][0] > 0 and found["4"][0] == 0
    assert found["1"][1] < 1e-5 and found["4"][1] < 1e-5
