"""Meshes and layouts: one device equals eight, seeds together equal seeds alone."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darts_jax.errors import UserError
from darts_jax.training import parallel

CHILD = Path(__file__).with_name("eight_devices.py")
BOUNDS = {"float32": 1e-5, "float64": 1e-10}  # of states after three steps


def config(size: int = 8, parts: int = 1, groups: int = 1, **fields: int) -> Any:
    options = {"devices": 0, "seed_devices": 0, **fields}
    return SimpleNamespace(
        num_seeds=options.pop("num_seeds", 1),
        batch_size=size,
        accumulate=parts,
        batch_norm=SimpleNamespace(groups=groups),
        parallel=SimpleNamespace(**options),
    )


def run_child(*words: str) -> float:
    done = subprocess.run(
        [sys.executable, str(CHILD), *words],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])["difference"]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("kind", "precision", "case"),
    [
        ("first_order", "float64", "data"),
        pytest.param("first_order", "float32", "data", marks=pytest.mark.slow),
        pytest.param("unrolled", "float64", "data", marks=pytest.mark.slow),
        pytest.param("finite_difference", "float64", "data", marks=pytest.mark.slow),
        ("first_order", "float64", "merged"),
        ("retrain", "float32", "data"),
        pytest.param("retrain", "float64", "data", marks=pytest.mark.slow),
        ("retrain", "float64", "groups"),
        pytest.param("first_order", "float64", "groups", marks=pytest.mark.slow),
        ("retrain", "float64", "seeds"),
        pytest.param("first_order", "float64", "seeds", marks=pytest.mark.slow),
    ],
)
def test_eight_devices_equal_one(kind: str, precision: str, case: str) -> None:
    assert run_child(kind, precision, case) < BOUNDS[precision]


@pytest.mark.parametrize(
    ("size", "parts", "groups", "devices", "choices"),
    [
        (10, 1, 1, 8, "8 or 16"),
        (5, 1, 1, 8, "choose 8"),
        (12, 1, 8, 1, "8 or 16"),
        (64, 3, 1, 1, "63 or 66"),
        (64, 2, 6, 4, "48 or 72"),
    ],
)
def test_batch_that_does_not_divide(
    size: int, parts: int, groups: int, devices: int, choices: str
) -> None:
    with pytest.raises(
        UserError, match=f"config.batch_size={size} .*{choices}$"
    ) as error:
        parallel.check_batch(config(size, parts, groups), devices)
    for number, name in ((parts, "accumulate"), (groups, "batch_norm.groups")):
        assert (f"{name}={number}" in str(error.value)) == (number > 1)
    for given in map(int, choices.removeprefix("choose ").split(" or ")):
        parallel.check_batch(config(given, parts, groups), devices)


def test_too_many_devices_are_one_line() -> None:
    with pytest.raises(UserError, match="config.parallel.devices=99, but there are 1"):
        parallel.make_layout(config(devices=99))


def test_seed_axis_that_does_not_divide() -> None:
    with pytest.raises(
        UserError, match="seed_devices=2 does not divide 4 seeds and 1 d"
    ):
        parallel.make_layout(config(seed_devices=2), 4)


@pytest.mark.parametrize(
    ("size", "seeds", "devices", "wanted"),
    [
        (6, 3, 4, (3, 3)),  # on four devices each seed's batch would be split in four
        (8, 3, 4, (4, 1)),
        (64, 5, 6, (5, 5)),
        (7, 2, 8, (7, 1)),
        (7, 1, 4, (1, 1)),
    ],
)
def test_seeds_that_are_left_take_the_devices_that_divide(
    size: int, seeds: int, devices: int, wanted: tuple[int, int]
) -> None:
    some = list(range(devices))
    found, along = parallel._for_the_rest(config(size, num_seeds=8), seeds, some)
    assert (len(found), along) == wanted and found == some[: len(found)]


def test_members_and_stack_undo_each_other() -> None:
    layout = parallel.make_layout(config(), 3)
    states = [
        {"x": jnp.full(2, float(seed)), "key": jax.random.key(seed)}
        for seed in range(3)
    ]
    stacked = layout.stack(states)
    assert stacked["x"].shape == (3, 2) and stacked["key"].shape == (3,)
    for found, wanted in zip(layout.members(stacked), states, strict=True):
        np.testing.assert_array_equal(found["x"], wanted["x"])
        assert jax.random.key_data(found["key"]).tolist() == (
            jax.random.key_data(wanted["key"]).tolist()
        )


def test_seeds_start_as_they_would_alone() -> None:
    def initialise(key: jax.Array) -> Any:
        return {"key": key, "x": jax.random.normal(key, (5,))}

    together = parallel.make_layout(config(), 2)
    alone = parallel.one_device()
    stacked = together.members(together.start(initialise, [7, 11]))
    for seed, found in zip((7, 11), stacked, strict=True):
        wanted = alone.start(initialise, [seed])
        assert found["x"].tobytes() == wanted["x"].tobytes()
        np.testing.assert_array_equal(
            jax.random.key_data(wanted["key"]),
            jax.random.key_data(jax.random.key(seed)),
        )
