"""Reading golden files: layouts of the reference, relative errors, checks."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from darts_jax.errors import UserError
from darts_jax.genotype import CellGenotype, Genotype
from darts_jax.types import Batch

TOLERANCE = 1e-9
KINDS = ("normal", "reduce")


class Golden(dict[str, np.ndarray]):
    """A golden file's arrays by key; a key that is missing raises UserError."""

    def __missing__(self, key: str) -> np.ndarray:
        raise UserError(f"the golden file has no {key!r}")


class Check(NamedTuple):
    """One compared quantity: the largest relative error and what it may be."""

    quantity: str
    error: float
    tolerance: float = TOLERANCE

    @property
    def passed(self) -> bool:
        """Whether the error is within tolerance; NaN never is."""
        return self.error <= self.tolerance


def relative_error(ours: Any, golden: Any) -> float:
    """Returns max |ours - golden| / max |golden|; infinite where the shapes differ.

    Dictionaries are compared key by key (the golden one's keys), the largest error counts.
    """
    if isinstance(golden, Mapping):
        # Not the built-in max, which passes over a NaN.
        return float(np.max([relative_error(ours[key], golden[key]) for key in golden]))
    ours, golden = np.asarray(ours), np.asarray(golden)
    if ours.shape != golden.shape:
        return float("inf")
    return float(np.abs(ours - golden).max() / (np.abs(golden).max() or 1.0))


def read_batch(golden: Golden, images: str, labels: str) -> Batch:
    """Returns a batch of the file, images to `[B, H, W, C]` float64."""
    x = golden[images].transpose(0, 2, 3, 1)
    return Batch(jnp.asarray(x, jnp.float64), jnp.asarray(golden[labels]))


def nchw(x: jax.Array) -> np.ndarray:
    """Returns a module's output, `[C, B, H, W]` or `[1, C, B, H, W]`, as `[B, C, H, W]`."""
    return np.asarray(x).reshape(x.shape[-4:]).transpose(1, 0, 2, 3)


def read_named(golden: Golden, index: str, key: str) -> dict[str, np.ndarray]:
    """Returns {name: float64 array} of a flat vector, by the file's index of its parts."""
    vector = golden[key].astype(np.float64)
    return {
        name: vector[start : start + int(np.prod(shape))].reshape(shape)
        for name, shape, start in json.loads(str(golden[index]))
    }


def read_kinds(golden: Golden, form: str) -> dict[str, np.ndarray]:
    """Returns {cell kind: float64 array}; `form` is the key with {} for the kind."""
    return {kind: golden[form.format(kind)].astype(np.float64) for kind in KINDS}


def read_genotype(golden: Golden) -> Genotype:
    """Returns the file's genotype; the reference lists two edges a node, in order."""
    flat = json.loads(str(golden["genotype_json"]))
    cells = {}
    for kind in KINDS:
        edges = [(primitive, source) for primitive, source in flat[kind]]
        nodes = tuple(tuple(edges[i : i + 2]) for i in range(0, len(edges), 2))
        cells[kind] = CellGenotype(nodes, tuple(flat[f"{kind}_concat"]))
    return Genotype("darts", cells)
