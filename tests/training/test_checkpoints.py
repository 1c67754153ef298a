"""Checkpoints: exact round trip, damage found, kills and full disks survived."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from darts_jax.errors import UserError
from darts_jax.models.packing import pack
from darts_jax.training import checkpoints
from darts_jax.types import SearchState

SAVE_FOREVER = """
import sys, jax.numpy as jnp
from pathlib import Path
from darts_jax.training import checkpoints
for step in range(1, 10_000):
    checkpoints.save(Path(sys.argv[1]), step, {"x": jnp.full((300, 300), step)}, keep=2)
    print(step, flush=True)
"""


def make_tree(value: float = 1.0) -> SearchState:
    weights = {
        "stem": jnp.full((3, 4), value),
        "b": jnp.full((2,), value, jnp.bfloat16),
    }
    alphas = {"normal": jnp.full((2, 3), value)}
    return SearchState(
        step=jnp.asarray(7, jnp.int32),
        key=jax.random.key(3),
        weights=weights,
        batch_stats={},
        weight_opt=optax.sgd(0.1, momentum=0.9).init(weights),
        alphas=alphas,
        alpha_opt=optax.adam(1e-3).init(alphas),
    )


def raw(tree: Any) -> list[bytes]:
    leaves = jax.tree.leaves(tree)
    keys = [jnp.issubdtype(x.dtype, jax.dtypes.prng_key) for x in leaves]
    data = [
        jax.random.key_data(x) if k else x for x, k in zip(leaves, keys, strict=True)
    ]
    return [np.asarray(x).tobytes() for x in data]


def largest_data_file(directory: Path, step: int) -> Path:
    files = (directory / f"{step:010d}" / "state").rglob("*")
    return max((f for f in files if f.is_file()), key=lambda f: f.stat().st_size)


def test_round_trip_is_exact(tmp_path: Path) -> None:
    tree = make_tree(1 / 3)
    checkpoints.save(tmp_path, 7, tree, keep=1)
    restored, step = checkpoints.restore(tmp_path, jax.eval_shape(lambda: tree))
    assert step == 7
    assert jax.tree.structure(restored) == jax.tree.structure(tree)
    assert raw(restored) == raw(tree)
    assert [x.dtype for x in jax.tree.leaves(restored)] == [
        x.dtype for x in jax.tree.leaves(tree)
    ]
    original = jax.random.uniform(tree.key)
    assert jax.random.uniform(restored.key) == original


def test_what_is_packed_is_stored_by_its_names(tmp_path: Path) -> None:
    plain = {"weights": {"b": np.ones((2, 3)), "a": np.float64(2)}, "step": np.int64(4)}
    tree = plain | {"weights": pack(plain["weights"])}
    checkpoints.save(tmp_path, 4, tree, keep=1)
    manifest = json.loads((tmp_path / "0000000004" / "manifest.json").read_text())
    assert [leaf["path"] for leaf in manifest["leaves"]] == [
        "['step']",
        "['weights']['a']",
        "['weights']['b']",
    ]
    for like in (tree, plain):  # saved packed, read either way
        restored, _ = checkpoints.restore(tmp_path, like)
        assert jax.tree.structure(restored) == jax.tree.structure(like)
        jax.tree.map(np.testing.assert_array_equal, restored, like)
    checkpoints.save(tmp_path, 5, plain, keep=1)
    restored, _ = checkpoints.restore(tmp_path, tree)
    np.testing.assert_array_equal(restored["weights"].values, tree["weights"].values)


def test_array_without_elements(tmp_path: Path) -> None:
    checkpoints.save(tmp_path, 1, {"x": jnp.zeros((0, 3)), "y": jnp.ones(2)}, keep=1)
    like = {"x": jnp.zeros((0, 3)), "y": jnp.zeros(2)}
    restored, _ = checkpoints.restore(tmp_path, like)
    assert restored["x"].shape == (0, 3)
    assert restored["y"].tolist() == [1, 1]


def test_keeps_the_latest(tmp_path: Path) -> None:
    assert checkpoints.latest_step(tmp_path / "absent") is None
    for step in (1, 2, 3):
        checkpoints.save(tmp_path, step, {"x": jnp.ones(step)}, keep=2)
    assert checkpoints.latest_step(tmp_path) == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0000000002", "0000000003"]


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint"):
        checkpoints.restore(tmp_path, {"x": jnp.ones(1)})


def flip_byte(directory: Path) -> None:
    """Flips a bit where the array's own bytes lie, so that orbax notices nothing."""
    path = largest_data_file(directory, 2)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def truncate(directory: Path) -> None:
    path = largest_data_file(directory, 2)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def tear_manifest(directory: Path) -> None:
    path = directory / "0000000002" / "manifest.json"
    path.write_text(path.read_text()[:-40])


def remove_leaf(directory: Path) -> None:
    path = directory / "0000000002" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["leaves"].pop()
    path.write_text(json.dumps(manifest))


def raise_format(directory: Path) -> None:
    path = directory / "0000000002" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))


def forget_shape(directory: Path) -> None:
    path = directory / "0000000002" / "manifest.json"
    path.write_text(path.read_text().replace("stored_shape", "stored_shapf"))


def other_prng(directory: Path) -> None:
    path = directory / "0000000002" / "manifest.json"
    path.write_text(path.read_text().replace('"prng": ""', '"prng": "threefry2x30"'))


@pytest.mark.parametrize(
    "damage",
    [
        flip_byte,
        truncate,
        tear_manifest,
        remove_leaf,
        raise_format,
        forget_shape,
        other_prng,
    ],
)
def test_damage_falls_back_to_the_older(
    damage: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = np.random.default_rng(0).normal(size=(2, 100, 100)).astype(np.float32)
    for step in (1, 2):
        checkpoints.save(tmp_path, step, {"x": jnp.asarray(values[step - 1])}, keep=2)
    damage(tmp_path)
    like = {"x": jnp.zeros((100, 100))}
    restored, step = checkpoints.restore(tmp_path, like)
    assert step == 1
    np.testing.assert_array_equal(restored["x"], values[0])
    assert capsys.readouterr().err.startswith("warning: checkpoint passed over: step 2")
    with pytest.raises(UserError, match="no intact checkpoint"):
        checkpoints.restore(tmp_path, like, step=2)


def test_run_that_fell_back_keeps_its_new_checkpoint(tmp_path: Path) -> None:
    for step in (1, 2):
        checkpoints.save(tmp_path, step * 10, {"x": jnp.ones(3) * step}, keep=2)
    checkpoints.save(tmp_path, 15, {"x": jnp.zeros(3)}, keep=1)
    assert checkpoints.latest_step(tmp_path) == 15
    assert (tmp_path / "damaged-20").is_dir()


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"x": jnp.zeros((3, 2))}, "has shape"),
        ({"x": jnp.zeros((2, 3), jnp.float16)}, "is float32, expected float16"),
        ({"x": jnp.zeros((2, 3)), "y": jnp.zeros(1)}, r"lacks \['y'\]"),
        ({}, r"holds \['x'\]"),
    ],
)
def test_other_structure_is_refused(like: Any, message: str, tmp_path: Path) -> None:
    checkpoints.save(tmp_path, 1, {"x": jnp.zeros((2, 3))}, keep=1)
    with pytest.raises(UserError, match=message):
        checkpoints.restore(tmp_path, like)


def test_failed_save_keeps_the_previous(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints.save(tmp_path, 1, {"x": jnp.ones(3)}, keep=1)

    def fail(folder: Path, step: int, tree: Any) -> None:
        (folder / "state").mkdir(parents=True)
        raise ValueError("RESOURCE_EXHAUSTED: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "_write", fail)
        with pytest.raises(OSError, match="RESOURCE_EXHAUSTED") as error:
            checkpoints.save(tmp_path, 2, {"x": jnp.zeros(3)}, keep=1)
        assert error.value.errno == errno.ENOSPC
    restored, step = checkpoints.restore(tmp_path, {"x": jnp.zeros(3)})
    assert (step, restored["x"].tolist()) == (1, [1, 1, 1])
    assert [p.name for p in tmp_path.iterdir()] == ["0000000001"]


@pytest.mark.parametrize("delay", [0.0, 0.013])
def test_kill_in_mid_save_loses_nothing(delay: float, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SAVE_FOREVER, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for _ in range(3):
        acknowledged = int(process.stdout.readline())
    time.sleep(delay)
    os.kill(process.pid, signal.SIGKILL)
    acknowledged = max([acknowledged, *map(int, process.stdout.read().split())])
    process.wait()
    like = {"x": jnp.zeros((300, 300), jnp.int32)}
    restored, step = checkpoints.restore(tmp_path, like)
    assert step in (acknowledged, acknowledged + 1)
    assert (np.asarray(restored["x"]) == step).all()
    checkpoints.save(tmp_path, step + 1, like, keep=2)
    assert not list(tmp_path.glob("unfinished-*"))
