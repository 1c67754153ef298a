"""Optimizers and learning-rate schedules, in the order of the reference's updates."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from darts_jax.errors import unknown

Schedule = Callable[[jax.Array], jax.Array]


def _cosine(fraction, epoch, initial, final, decay):
    return final + (initial - final) * 0.5 * (1 + jnp.cos(jnp.pi * fraction))


def _exponential(fraction, epoch, initial, final, decay):
    return initial * decay**epoch


def _constant(fraction, epoch, initial, final, decay):
    return initial * jnp.ones_like(fraction)


SCHEDULES = {"cosine": _cosine, "exponential": _exponential, "constant": _constant}


def learning_rate_schedule(
    name: str,
    *,
    initial: float,
    final: float,
    decay: float,
    num_epochs: int,
    steps_per_epoch: int,
) -> Schedule:
    """Returns step -> learning rate; constant within an epoch, as in the reference.

    Args:
        name: "cosine" from `initial` at epoch 0 towards `final`, "exponential"
            (`initial * decay ** epoch`) or "constant".
        initial: learning rate of epoch 0.
        final: the cosine's lower end.
        decay: factor an epoch.
        num_epochs: of the whole run.
        steps_per_epoch: steps of one epoch.

    Raises:
        UserError: unknown name.
    """
    if name not in SCHEDULES:
        raise unknown("schedule", name, SCHEDULES)

    def schedule(step: jax.Array) -> jax.Array:
        epoch = jnp.asarray(step) // steps_per_epoch
        return SCHEDULES[name](epoch / num_epochs, epoch, initial, final, decay)

    return schedule


def clip_by_norm(max_norm: float) -> optax.GradientTransformation:
    """Scales updates to a global norm of at most `max_norm`, by PyTorch's formula.

    The factor is min(1, max_norm / (norm + 1e-6)); optax's has no 1e-6, which is enough to
    miss the reference by more than float64 rounding.
    """

    def clip(updates, params=None):
        factor = jnp.minimum(1.0, max_norm / (optax.tree.norm(updates) + 1e-6))
        return jax.tree.map(lambda g: g * factor, updates)

    return optax.stateless(clip)


def zeros_on_host(
    optimizer: optax.GradientTransformation,
) -> optax.GradientTransformation:
    """Returns an optimizer whose state begins as zeros, with these made by numpy.

    Outside of a compiled program jnp.zeros compiles a program for every shape there is.
    """

    def init(params: optax.Params) -> optax.OptState:
        leaves = jax.tree.leaves(params)
        if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            return optimizer.init(params)
        shapes = jax.eval_shape(optimizer.init, params)
        return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)

    return optimizer._replace(init=init)


def weight_optimizer(
    learning_rate: Schedule | float,
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 3e-4,
    clip: float = 5.0,
) -> optax.GradientTransformation:
    """Returns SGD: clip the gradient, add coupled weight decay, momentum, learning rate.

    Args:
        learning_rate: a schedule over steps, or a constant.
        momentum: of the trace `buffer = momentum * buffer + gradient`.
        nesterov: Nesterov's form of it.
        weight_decay: times the weights, added to the clipped gradient.
        clip: largest global norm of the gradient; 0 does not clip. The state has the same
            structure with and without, so the virtual step (which does not clip) can use the
            state of the real optimizer.
    """
    return zeros_on_host(
        optax.chain(
            clip_by_norm(clip) if clip else optax.identity(),
            optax.add_decayed_weights(weight_decay),
            optax.trace(momentum, nesterov),
            optax.scale_by_learning_rate(learning_rate),
        )
    )


def alpha_optimizer(
    learning_rate: float,
    *,
    b1: float = 0.5,
    b2: float = 0.999,
    weight_decay: float = 1e-3,
) -> optax.GradientTransformation:
    """Returns Adam with coupled L2: the decay enters the moments (this is not AdamW)."""
    return zeros_on_host(
        optax.chain(
            optax.add_decayed_weights(weight_decay),
            optax.scale_by_adam(b1, b2),
            optax.scale_by_learning_rate(learning_rate),
        )
    )
