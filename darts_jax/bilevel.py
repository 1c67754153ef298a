"""Architecture gradients of a bilevel problem; knows no networks, only functions of pytrees.

    min over alphas of  L_valid(w*(alphas), alphas)
    with w*(alphas) = argmin over w of L_train(w, alphas)          (Liu et al. 2019, eq. 3-4)

Every hypergradient has the signature

    hypergradient(loss, virtual_step, weights, alphas, train_batch, valid_batch)
        -> Hypergradient(value, alphas, train_aux, valid_aux)

where `loss(weights, alphas, batch) -> (scalar, aux)` and `virtual_step(weights, grads) ->
weights` is the one step of the lower level that stands for w* (it closes over learning rate,
momentum and weight decay, and does not clip). `aux` is whatever the loss reports beside its
value (batch statistics, accuracy); each pass at or near `weights` contributes one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from darts_jax.types import Alphas, Batch, Weights

Loss = Callable[[Weights, Alphas, Batch], tuple[jax.Array, Any]]
VirtualStep = Callable[[Weights, Weights], Weights]


class Hypergradient(NamedTuple):
    """What one upper-level evaluation yields.

    value: L_valid at the point where the gradient was taken.
    alphas: its gradient, a pytree like the alphas.
    train_aux: the loss's aux of every pass over the train batch at the network's own
        weights or, of a finite difference, near them, in the reference's order.
    valid_aux: the aux of the pass over the valid batch.
    own_weights: whether that pass used the network's own weights (not the virtual ones).
    """

    value: jax.Array
    alphas: Alphas
    train_aux: tuple[Any, ...]
    valid_aux: Any
    own_weights: bool


def first_order(
    loss: Loss,
    virtual_step: VirtualStep,
    weights: Weights,
    alphas: Alphas,
    train_batch: Batch,
    valid_batch: Batch,
) -> Hypergradient:
    """Returns the gradient that takes w for w*: dL_valid(w, alphas)/dalphas."""
    del virtual_step, train_batch
    (value, aux), grads = jax.value_and_grad(loss, 1, has_aux=True)(
        weights, alphas, valid_batch
    )
    return Hypergradient(value, grads, (), aux, True)


class _Virtual(NamedTuple):
    """What both second-order forms share: the gradients at w' and the direction u."""

    value: jax.Array
    alphas_grad: Alphas  # dL_valid(w', alphas)/dalphas with w' held fixed
    direction: Weights  # u = (dw'/dg)^T dL_valid(w', alphas)/dw'; -lr * v for SGD
    train_aux: Any
    valid_aux: Any


def _virtual(
    loss: Loss,
    virtual_step: VirtualStep,
    weights: Weights,
    alphas: Alphas,
    train_batch: Batch,
    valid_batch: Batch,
) -> _Virtual:
    grads, train_aux = jax.grad(loss, has_aux=True)(weights, alphas, train_batch)
    stepped, pull_back = jax.vjp(lambda g: virtual_step(weights, g), grads)
    (value, valid_aux), (v, alphas_grad) = jax.value_and_grad(
        loss, (0, 1), has_aux=True
    )(stepped, alphas, valid_batch)
    (direction,) = pull_back(v)
    return _Virtual(value, alphas_grad, direction, train_aux, valid_aux)


def unrolled(
    loss: Loss,
    virtual_step: VirtualStep,
    weights: Weights,
    alphas: Alphas,
    train_batch: Batch,
    valid_batch: Batch,
) -> Hypergradient:
    """Returns the exact derivative of L_valid(w'(alphas), alphas) through the virtual step.

    With w' = step(w, g) and g = dL_train(w, alphas)/dw the chain rule gives

        dL_valid(w', alphas)/dalphas + (d2 L_train(w, alphas) / dalphas dw) u,
        u = (dw'/dg)^T dL_valid(w', alphas)/dw'

    (Liu et al. 2019, eq. 7, there with u = -lr * v). The mixed second derivative times u is
    one forward-mode derivative of the alphas' gradient: exact, and cheaper than reverse over
    reverse.
    """
    virtual = _virtual(loss, virtual_step, weights, alphas, train_batch, valid_batch)

    def alphas_grad(w: Weights) -> Alphas:
        return jax.grad(loss, 1, has_aux=True)(w, alphas, train_batch)[0]

    _, implicit = jax.jvp(alphas_grad, (weights,), (virtual.direction,))
    grads = jax.tree.map(jnp.add, virtual.alphas_grad, implicit)
    return Hypergradient(
        virtual.value, grads, (virtual.train_aux,), virtual.valid_aux, False
    )


def finite_difference(
    loss: Loss,
    virtual_step: VirtualStep,
    weights: Weights,
    alphas: Alphas,
    train_batch: Batch,
    valid_batch: Batch,
    *,
    radius: float = 0.01,
) -> Hypergradient:
    """Returns the paper's approximation of `unrolled` (Liu et al. 2019, eq. 8).

    The mixed derivative times u is replaced by a central difference along u,

        |u| * [dL_train(w + r u/|u|)/dalphas - dL_train(w - r u/|u|)/dalphas] / (2 r),

    which for u = -lr * v is the paper's with epsilon = r / |v|, r = `radius` = 0.01.
    """
    virtual = _virtual(loss, virtual_step, weights, alphas, train_batch, valid_batch)
    norm = optax.tree.norm(virtual.direction)
    scale = jnp.where(norm > 0, radius / norm, 0.0)  # no direction: no implicit term

    def alphas_grad(step: jax.Array) -> tuple[Alphas, Any]:
        moved = jax.tree.map(lambda w, u: w + step * u, weights, virtual.direction)
        # By default a GPU rounds the operands of float32 products to 10 bits (TF32), and
        # with them away what tells the two points apart.
        with jax.default_matmul_precision("float32"):
            return jax.grad(loss, 1, has_aux=True)(moved, alphas, train_batch)

    # u points against v, so the paper's w+ is the point at -scale: it is visited first. One
    # after another by one program, which takes less memory and compilation than two.
    both, aux = jax.lax.map(alphas_grad, jnp.stack([-scale, scale]))
    grads = jax.tree.map(
        lambda g, pair: g + norm * (pair[1] - pair[0]) / (2 * radius),
        virtual.alphas_grad,
        both,
    )
    first_aux = jax.tree.map(lambda leaf: leaf[0], aux)
    second_aux = jax.tree.map(lambda leaf: leaf[1], aux)
    return Hypergradient(
        virtual.value,
        grads,
        (virtual.train_aux, first_aux, second_aux),
        virtual.valid_aux,
        False,
    )


HYPERGRADIENTS: dict[str, Callable[..., Hypergradient]] = {
    "first_order": first_order,
    "unrolled": unrolled,
    "finite_difference": finite_difference,
}
