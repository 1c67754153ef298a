"""Checkpoints of a pytree of arrays: orbax stores them, our manifest vouches for them.

    checkpoints/0000000042/state/         orbax, one array a leaf
    checkpoints/0000000042/manifest.json  path, shape, dtype and SHA-256 of every leaf

Orbax alone restores a flipped byte or another dtype without a word; the manifest
catches both. What is packed in a state (`models.packing`) is stored as the arrays it holds:
they keep their names, and a run can go on where states are not packed. A checkpoint is
written beside its place and renamed into it, so a process killed in mid-save leaves at most
a folder that the next save sweeps away.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from darts_jax.errors import UserError
from darts_jax.models import pack_as, unpack

FORMAT = 1
UNFINISHED = "unfinished-"  # being written, or left by a process that was killed
DAMAGED = "damaged-"  # found unreadable and passed over; kept for the user to look at


class DamagedError(Exception):
    """One checkpoint cannot be restored; the message says why."""


def save(directory: Path, step: int, tree: Any, *, keep: int) -> None:
    """Writes `tree` as the checkpoint of `step` and keeps only the latest `keep`.

    tree: any pytree of arrays; PRNG keys and optimizer states among them.

    Raises:
        OSError: the disk is full or fails; earlier checkpoints stay whole.
    """
    directory = directory.absolute()
    directory.mkdir(parents=True, exist_ok=True)
    sweep(directory)
    unfinished = directory / f"{UNFINISHED}{step}"
    try:
        _write(unfinished, step, unpack(tree))
    except BaseException as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if not isinstance(error, ValueError):
            raise
        # So tensorstore says, at length, what the file system refused.
        reason = " ".join(str(error).split())
        full = "No space left" in reason
        raise OSError(
            errno.ENOSPC if full else errno.EIO, f"{reason:.120}", str(directory)
        ) from error
    final = directory / f"{step:010d}"
    for later in [s for s in saved_steps(directory) if s >= step]:
        # A run stands before a checkpoint on disk only where that one was unreadable.
        damaged = directory / f"{DAMAGED}{later}"
        shutil.rmtree(damaged, ignore_errors=True)
        os.rename(directory / f"{later:010d}", damaged)
    os.rename(unfinished, final)
    _sync(directory)
    for old in saved_steps(directory)[:-keep]:
        shutil.rmtree(directory / f"{old:010d}", ignore_errors=True)


def latest_step(directory: Path) -> int | None:
    """Returns the step of the latest complete checkpoint, None where there is none."""
    steps = saved_steps(directory)
    return steps[-1] if steps else None


def restore(
    directory: Path, tree_like: Any, step: int | None = None
) -> tuple[Any, int]:
    """Returns the tree of `step` (default: the latest that is intact) and its step.

    tree_like: a pytree of arrays or `jax.ShapeDtypeStruct` with the saved structure; what is
        packed in it is packed in the result.
    A damaged checkpoint is passed over for an older one, with a warning on stderr.

    Raises:
        UserError: there is none, or none is intact.
    """
    directory = directory.absolute()
    steps = saved_steps(directory) if step is None else [step]
    if not steps:
        raise UserError(f"no checkpoint in {directory}")
    reasons: list[str] = []
    unpacked = unpack(tree_like)
    for candidate in reversed(steps):
        try:
            tree = _read(directory / f"{candidate:010d}", unpacked)
            return pack_as(tree, tree_like), candidate
        except DamagedError as error:
            reasons.append(f"step {candidate}: {error}")
            print(f"warning: checkpoint passed over: {reasons[-1]}", file=sys.stderr)
    raise UserError(f"no intact checkpoint in {directory}; {'; '.join(reasons)}")


def sweep(directory: Path) -> None:
    """Removes what killed saves left; only for the process that holds the run."""
    for leftover in directory.glob(f"{UNFINISHED}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def drop_after(directory: Path, step: int) -> None:
    """Removes the checkpoints of later steps than `step`."""
    for later in [s for s in saved_steps(directory) if s > step]:
        shutil.rmtree(directory / f"{later:010d}", ignore_errors=True)


def saved_steps(directory: Path) -> list[int]:
    """Returns the steps of the complete checkpoints, the latest last."""
    if not directory.is_dir():
        return []
    return sorted(int(p.name) for p in directory.iterdir() if p.name.isdecimal())


def _write(folder: Path, step: int, tree: Any) -> None:
    import orbax.checkpoint as ocp

    arrays: dict[str, np.ndarray] = {}
    leaves: list[dict[str, Any]] = []
    for index, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(tree)):
        array = _to_numpy(leaf)
        if array.size:  # orbax refuses arrays without elements; the shape says it all
            arrays[f"{index:06d}"] = array
        leaves.append({"path": jax.tree_util.keystr(path), **_describe(leaf, array)})
    with _quiet(), _checkpointer() as checkpointer:
        checkpointer.save(folder / "state", args=ocp.args.StandardSave(arrays))
    manifest = {"format": FORMAT, "step": step, "leaves": leaves}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))
    for file in folder.rglob("*"):
        _sync(file)
    _sync(folder)


def _read(folder: Path, tree_like: Any) -> Any:
    leaves = _read_manifest(folder)
    expected, structure = jax.tree_util.tree_flatten_with_path(tree_like)
    saved = {leaf["path"]: (index, leaf) for index, leaf in enumerate(leaves)}
    paths = [jax.tree_util.keystr(path) for path, _ in expected]
    if missing := [path for path in paths if path not in saved]:
        raise DamagedError(f"it lacks {_some(missing)}")
    if surplus := sorted(set(saved) - set(paths)):
        raise DamagedError(f"it holds {_some(surplus)}, which nothing here has")
    for path, (_, like) in zip(paths, expected, strict=True):
        _check_kind(path, saved[path][1], like)
    arrays = _read_arrays(folder, leaves)
    restored = []
    for path in paths:
        index, leaf = saved[path]
        array = arrays[index]
        if leaf["sha256"] != _digest(array):
            raise DamagedError(f"{path} differs from its SHA-256")
        value = jnp.array(array)
        key = leaf["prng"]
        restored.append(jax.random.wrap_key_data(value, impl=key) if key else value)
    return jax.tree_util.tree_unflatten(structure, restored)


def _read_manifest(folder: Path) -> list[dict[str, Any]]:
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        leaves, version = manifest["leaves"], manifest["format"]
        for leaf in leaves:
            _ = leaf["path"], tuple(leaf["shape"]), leaf["dtype"], leaf["sha256"]
            np.dtype(leaf["stored_dtype"]), tuple(leaf["stored_shape"])
            if leaf["prng"]:
                jax.random.key(0, impl=leaf["prng"])  # a ValueError where there is none
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"its manifest is unreadable ({error!r:.80})") from error
    if version != FORMAT:
        raise DamagedError(f"its format is {version}, this program reads {FORMAT}")
    return leaves


def _checkpointer() -> Any:
    """Returns orbax's checkpointer of this process alone: it waits for no other."""
    import orbax.checkpoint as ocp

    mine = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=mine, active_processes={mine}, barrier_sync_key_prefix=str(mine)
    )
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _read_arrays(folder: Path, leaves: list[dict[str, Any]]) -> list[np.ndarray]:
    """Returns every leaf's array as stored, in the manifest's order."""
    import orbax.checkpoint as ocp

    like = [
        np.empty(leaf["stored_shape"], np.dtype(leaf["stored_dtype"]))
        for leaf in leaves
    ]
    wanted = {f"{i:06d}": array for i, array in enumerate(like) if array.size}
    try:
        with _quiet(), _checkpointer() as checkpointer:
            found = checkpointer.restore(
                folder / "state", args=ocp.args.StandardRestore(wanted)
            )
    except Exception as error:
        # Orbax and tensorstore raise what they like for a torn file: each means damage.
        reason = " ".join(str(error).split())
        raise DamagedError(f"its data is unreadable ({reason:.120})") from error
    return [np.asarray(found.get(f"{i:06d}", array)) for i, array in enumerate(like)]


def _describe(leaf: Any, array: np.ndarray) -> dict[str, Any]:
    is_key = _is_key(leaf)
    return {
        "shape": list(np.shape(leaf)),
        "dtype": str(leaf.dtype) if is_key else str(array.dtype),
        "stored_shape": list(array.shape),
        "stored_dtype": str(array.dtype),
        "prng": str(jax.random.key_impl(leaf)) if is_key else "",
        "sha256": _digest(array),
    }


def _check_kind(path: str, leaf: dict[str, Any], like: Any) -> None:
    shape, dtype = list(np.shape(like)), str(getattr(like, "dtype", type(like)))
    if leaf["shape"] != shape:
        raise DamagedError(f"{path} has shape {leaf['shape']}, expected {shape}")
    if leaf["dtype"] != dtype:
        raise DamagedError(f"{path} is {leaf['dtype']}, expected {dtype}")


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _to_numpy(leaf: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _some(paths: list[str]) -> str:
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return ", ".join(paths[:3]) + more


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps orbax's log lines off the terminal: they repeat its exceptions.

    After one tensorstore's threads call an event loop that is closed, and print that: they
    are left out for good.
    """
    logger = logging.getLogger("absl")
    level, report = logger.level, sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            report(unraisable)

    logger.setLevel(logging.CRITICAL + 1)
    sys.unraisablehook = hook
    try:
        yield
        sys.unraisablehook = report
    finally:
        logger.setLevel(level)
