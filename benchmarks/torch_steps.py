"""Steps of search and retraining in plain PyTorch, in the order of the authors' updates.

A pass takes gradients only of what it needs: an alphas step computes none of the weights.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEARNING_RATE, MOMENTUM, CLIP = 0.025, 0.9, 5.0
AUXILIARY_WEIGHT = 0.4
Images = tuple[Tensor, Tensor]  # images [B, C, H, W], labels [B]


def _gradients(loss: Tensor, of: list[Tensor]) -> list[Tensor]:
    """Returns the gradients; zeros for alphas of a cell kind that the network has not."""
    return list(torch.autograd.grad(loss, of, materialize_grads=True))


class Search:
    """A supernet, its alphas `{kind: [E, O]}` and the optimizers of both."""

    def __init__(
        self,
        model: nn.Module,
        alphas: dict[str, Tensor],
        *,
        nesterov: bool = False,
        weight_decay: float = 3e-4,
        forward: Callable[..., Tensor] | None = None,
    ) -> None:
        self.model, self.alphas = model, alphas
        self.forward = model if forward is None else forward
        self.weights = list(model.parameters())
        self.weight_optimizer = torch.optim.SGD(
            self.weights,
            LEARNING_RATE,
            MOMENTUM,
            weight_decay=weight_decay,
            nesterov=nesterov,
        )
        self.alpha_optimizer = torch.optim.Adam(
            alphas.values(), 3e-4, betas=(0.5, 0.999), weight_decay=1e-3
        )
        self.nesterov, self.weight_decay = nesterov, weight_decay

    def loss(self, batch: Images) -> Tensor:
        """Mean cross entropy at the present weights and alphas."""
        edge_weights = {
            kind: tuple(row.unbind() for row in values.softmax(1).unbind())
            for kind, values in self.alphas.items()
        }
        return F.cross_entropy(self.forward(batch[0], edge_weights), batch[1])

    def alphas_gradient(self, batch: Images) -> list[Tensor]:
        """The alphas' gradient alone: no gradient of the weights is computed."""
        return _gradients(self.loss(batch), [*self.alphas.values()])

    def first_order(self, train: Images, valid: Images) -> list[Tensor]:
        """dL_valid(w, alphas)/dalphas."""
        return self.alphas_gradient(valid)

    def finite_difference(
        self, train: Images, valid: Images, radius: float = 0.01
    ) -> list[Tensor]:
        """The paper's second-order gradient (Liu et al. 2019, eq. 7 and 8)."""
        start = [w.detach().clone() for w in self.weights]
        slope = self._virtual_step(train)
        with statistics_kept(self.model):
            grads = _gradients(self.loss(valid), [*self.alphas.values(), *self.weights])
        number = len(self.alphas)
        alphas_grad, v = list(grads[:number]), list(grads[number:])
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(v)))
        epsilon = (radius / norm).item()
        sides = []
        for sign in (1, -1):
            self._set(torch._foreach_add(start, v, alpha=sign * epsilon))
            sides.append(self.alphas_gradient(train))
        self._set(start)
        scale = slope / (2 * epsilon)
        return [
            g - scale * (plus - minus)
            for g, plus, minus in zip(alphas_grad, *sides, strict=True)
        ]

    def _virtual_step(self, train: Images) -> float:
        """Takes the unclipped SGD step; returns -dw'/dg, how far it moves by a gradient."""
        grads = torch.autograd.grad(self.loss(train), self.weights)
        with torch.no_grad():
            update = torch._foreach_add(grads, self.weights, alpha=self.weight_decay)
            state = self.weight_optimizer.state
            if all(state[w].get("momentum_buffer") is not None for w in self.weights):
                buffers = [state[w]["momentum_buffer"] for w in self.weights]
                buffers = torch._foreach_mul(buffers, MOMENTUM)
                torch._foreach_add_(buffers, update)
            else:
                buffers = update
            if self.nesterov:
                update = torch._foreach_add(update, buffers, alpha=MOMENTUM)
            else:
                update = buffers
            torch._foreach_add_(self.weights, update, alpha=-LEARNING_RATE)
        return LEARNING_RATE * (1 + MOMENTUM if self.nesterov else 1.0)

    @torch.no_grad()
    def _set(self, values: list[Tensor]) -> None:
        torch._foreach_copy_(self.weights, values)

    def alphas_step(self, grads: list[Tensor]) -> None:
        """One update of the alphas by Adam."""
        for alphas, grad in zip(self.alphas.values(), grads, strict=True):
            alphas.grad = grad
        self.alpha_optimizer.step()
        self.alpha_optimizer.zero_grad()

    def weights_step(self, train: Images) -> Tensor:
        """One update of the weights by SGD with clipping; returns the loss before."""
        loss = self.loss(train)
        for w, grad in zip(
            self.weights, torch.autograd.grad(loss, self.weights), strict=True
        ):
            w.grad = grad
        nn.utils.clip_grad_norm_(self.weights, CLIP)
        self.weight_optimizer.step()
        self.weight_optimizer.zero_grad()
        return loss.detach()


@contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """Leaves the running statistics as they are: the virtual network has its own."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum


class Retraining:
    """A derived network and its optimizer."""

    def __init__(
        self, model: nn.Module, drop_path: float, forward: Callable[..., Any]
    ) -> None:
        self.model, self.drop_path, self.forward = model, drop_path, forward
        self.weights = list(model.parameters())
        self.optimizer = torch.optim.SGD(
            self.weights, LEARNING_RATE, MOMENTUM, weight_decay=3e-4
        )

    def step(self, train: Images) -> Tensor:
        """One update of the weights; returns the loss before."""
        images, labels = train
        logits = self.forward(images, self.drop_path)
        if isinstance(logits, tuple):
            logits, auxiliary = logits
            loss = F.cross_entropy(logits, labels)
            loss = loss + AUXILIARY_WEIGHT * F.cross_entropy(auxiliary, labels)
        else:
            loss = F.cross_entropy(logits, labels)
        loss.backward()
        nn.utils.clip_grad_norm_(self.weights, CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()


def search_step(
    search: Search, hypergradient: str, order: str, train: Images, valid: Images
) -> Callable[[], Tensor]:
    """Returns the step of both levels, in the given order."""
    gradient = getattr(search, hypergradient)

    def step() -> Tensor:
        if order == "alphas_first":
            search.alphas_step(gradient(train, valid))
            return search.weights_step(train)
        loss = search.weights_step(train)
        search.alphas_step(gradient(train, valid))
        return loss

    return step
