"""Axis legend, state pytrees and the `Model` interface (floor 1).

Axis letters used in every docstring of the code base:

    B  batch             E  edges of a cell      S  seeds
    H  height            O  operations           T  time
    W  width             N  nodes                V  vocabulary
    C  channels          n  edges that leave one source state

Images enter as `[B, H, W, C]`; inside models/ activations are `[C, B, H, W]` (the reason
stands in models/depthwise.py).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Weights = Any  # pytree of float arrays: the network's parameters w, the lower level
BatchStats = Any  # pytree of float arrays: running means and variances
Alphas = dict[str, jax.Array]  # {cell kind: [E, O]}, float32: the upper level
EdgeWeights = dict[str, jax.Array]  # {cell kind: [E, O]}: alphas after relaxation
OptState = Any


class Batch(NamedTuple):
    """Augmented images `[B, H, W, C]` float32 and labels `[B]` int32."""

    images: jax.Array
    labels: jax.Array


class Model(NamedTuple):
    """A network as two pure functions; outside models/ nothing else of it is visible.

    init: `init(key) -> (weights, batch_stats)`.
    apply: a supernet is `apply(weights, batch_stats, images, edge_weights, *, train,
        key=None) -> (logits, new_batch_stats)`; a derived network has no edge_weights and
        takes `drop_path` (a probability, may be traced) and returns, when `train` and it has
        an auxiliary head, `((logits, auxiliary_logits), new_batch_stats)`.
    """

    init: Callable[..., tuple[Weights, BatchStats]]
    apply: Callable[..., tuple[Any, BatchStats]]


class SearchState(NamedTuple):
    """Everything that changes during a search; arrays only, for vmap, donation, resume."""

    step: jax.Array  # [] int32, search steps done
    key: jax.Array  # PRNG key of the run; never advanced, only folded
    weights: Weights
    batch_stats: BatchStats
    weight_opt: OptState
    alphas: Alphas
    alpha_opt: OptState


class RetrainState(NamedTuple):
    """Everything that changes during a retraining from scratch."""

    step: jax.Array
    key: jax.Array
    weights: Weights
    batch_stats: BatchStats
    weight_opt: OptState
