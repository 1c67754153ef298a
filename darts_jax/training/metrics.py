"""Losses, accuracies, and figures of edge weights."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from darts_jax.genotype import Genotype


def cross_entropy(
    logits: jax.Array, labels: jax.Array, *, smoothing: float = 0.0
) -> jax.Array:
    """Returns the cross entropy of every example, `[B, classes]` and `[B]` to `[B]`.

    With `smoothing` s the target is (1 - s) at the label plus s / classes everywhere
    (Szegedy et al. 2016).
    """
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    if smoothing:
        uniform = -jax.nn.log_softmax(logits).mean(-1)
        losses = (1 - smoothing) * losses + smoothing * uniform
    return losses


def correct_in_top(logits: jax.Array, labels: jax.Array, k: int) -> jax.Array:
    """Returns whether the label is among the k largest logits, `[B]` bool.

    Of equal logits the lower class ranks first, as for argmax, so that a network whose
    outputs are constant is right by chance only; one whose outputs are NaN never is.
    """
    own = jnp.take_along_axis(logits, labels[:, None], -1)
    lower = jnp.arange(logits.shape[-1]) < labels[:, None]
    before = ~(logits <= own) | ((logits == own) & lower)
    return before.sum(-1) < k


def entropy(edge_weights: jax.Array) -> jax.Array:
    """Returns the mean entropy over edges in nats, `[E, O]` to `[]`; 0 log 0 is 0."""
    return -jax.scipy.special.xlogy(edge_weights, edge_weights).sum(-1).mean()


def edge_weight_metrics(
    edge_weights: Mapping[str, Any], genotype: Genotype
) -> dict[str, Any]:
    """Returns entropy and number of skip connections of every cell kind."""
    row: dict[str, Any] = {}
    for kind, values in edge_weights.items():
        row[f"entropy_{kind}"] = float(entropy(jnp.asarray(values)))
        operations = [op for node in genotype.cells[kind].nodes for op, _ in node]
        row[f"skips_{kind}"] = operations.count("skip_connect")
    return row
