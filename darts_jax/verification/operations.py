"""Every primitive against its golden file: outputs in both modes and input gradients."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from darts_jax.interop import from_reference, operation_leaves
from darts_jax.models.model import make_operation
from darts_jax.verification.golden import Check, Golden, relative_error


def verify_operations(golden: Golden) -> Iterator[Check]:
    """Yields the checks of each primitive, stride and kind of batch norm in the file."""
    cases = sorted({key.rsplit("/", 1)[0] for key in golden if key.endswith("/x")})
    for case in cases:
        yield from _case(case, golden)


def _case(case: str, golden: Golden) -> Iterator[Check]:
    primitive, stride, norm = case.split("/")
    x = jnp.asarray(golden[f"{case}/x"].transpose(1, 0, 2, 3), jnp.float64)
    cotangent = golden[f"{case}/cotangent"].transpose(1, 0, 2, 3).astype(np.float64)
    prefix = f"{case}/w/"
    given = {
        k[len(prefix) :]: golden[k].astype(np.float64) for k in golden if prefix in k
    }
    size, affine = int(stride[1:]), norm == "affine"
    leaves = list(operation_leaves(primitive, size, "", (), affine=affine))
    weights, batch_stats = from_reference(given, leaves)
    apply = make_operation(primitive, channels=x.shape[0], stride=size, affine=affine)

    @functools.partial(jax.jit, static_argnames="train")
    def run(x: jax.Array, train: bool) -> jax.Array:
        return apply(weights, batch_stats, x, train=train)[0]

    y, pull_back = jax.vjp(functools.partial(run, train=True), x)
    (dx,) = pull_back(jnp.asarray(cotangent))
    for name, ours in (
        ("y_train", y),
        ("dx_train", dx),
        ("y_eval", run(x, train=False)),
    ):
        wanted = golden[f"{case}/{name}"]
        yield Check(
            f"{case}/{name}", relative_error(ours.transpose(1, 0, 2, 3), wanted)
        )
