"""Gradient accumulation: a batch in parts, one after another, in the memory of one part."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from darts_jax.types import Batch


def accumulated(loss: Callable[..., Any], parts: int) -> Callable[..., Any]:
    """Returns the loss of a batch as the mean over `parts` equal parts of it.

    loss: `(*pytrees, batch, part=i) -> pytree`, means over the batch it is given; `part`
    distinguishes the randomness of the parts. What it returns is averaged, the batch
    statistics too: they are updated once, with the mean of the parts' moments.

    The parts are computed in a loop that keeps nothing of a part but its sums, and computes
    it again for a gradient. So gradients of every order and of every argument accumulate, the
    second-order hypergradients' included; `optax.MultiSteps` would take a part's alphas and
    weights from different moments of a search step. The price is one more forward pass.
    """
    if parts == 1:
        return loss

    def whole(*arguments: Any) -> Any:
        *values, batch = arguments

        def split(array: jax.Array) -> jax.Array:
            # Every parts-th example: a batch that is split among devices stays where it is.
            return array.reshape(-1, parts, *array.shape[1:]).swapaxes(0, 1)

        @jax.checkpoint
        def add(sums: Any, numbered: tuple[Batch, jax.Array]) -> tuple[Any, None]:
            some, part = numbered
            return jax.tree.map(jnp.add, sums, loss(*values, some, part=part)), None

        batches, numbers = jax.tree.map(split, batch), jnp.arange(parts)
        first = jax.tree.map(lambda array: array[0], batches)
        shapes = jax.eval_shape(lambda b: loss(*values, b, part=numbers[0]), first)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        sums, _ = lax.scan(add, zeros, (batches, numbers))
        return jax.tree.map(lambda total: total / parts, sums)

    return whole
