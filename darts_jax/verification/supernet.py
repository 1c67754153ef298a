"""A supernet against its golden file: forward, gradients, hypergradients, a search step."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from darts_jax import bilevel, interop
from darts_jax.derive import derive
from darts_jax.models import make_supernet
from darts_jax.models.model import apply_with_outputs
from darts_jax.one_shot import ONE_SHOT
from darts_jax.spaces import SPACES, Space
from darts_jax.training.metrics import cross_entropy
from darts_jax.training.optimizers import alpha_optimizer, weight_optimizer
from darts_jax.training.search_step import Optimizers, make_search_step
from darts_jax.types import Alphas, Batch, Model, SearchState, Weights
from darts_jax.verification.golden import (
    TOLERANCE,
    Check,
    Golden,
    nchw,
    read_batch,
    read_genotype,
    read_kinds,
    read_named,
    relative_error,
)


class _Search(NamedTuple):
    """A supernet at a golden file's weights, and the functions that are compared."""

    golden: Golden
    space: Space
    model: Model
    jitted: Model  # its apply compiled by itself, shared by all gradients below
    leaves: list[interop.Leaf]
    optimizers: Optimizers
    state: SearchState
    train: Batch
    valid: Batch

    def loss(self, weights: Weights, alphas: Alphas, batch: Batch) -> tuple:
        """Cross entropy in training mode, with the new batch statistics as aux."""
        edge_weights = ONE_SHOT["darts"].relax(self.space, alphas)
        logits, stats = self.jitted.apply(
            weights, self.state.batch_stats, batch.images, edge_weights, train=True
        )
        return cross_entropy(logits, batch.labels).mean(), stats

    def with_momentum(self) -> SearchState:
        """The state with the file's momentum buffer."""
        given = read_named(self.golden, "params_index_json", "momentum_buffer")
        stats = interop.to_reference({}, self.state.batch_stats, self.stats_leaves)
        buffer, _ = interop.from_reference(stats | given, self.leaves)
        opt = self.state.weight_opt
        trace = opt[2]._replace(trace=buffer)
        return self.state._replace(weight_opt=(*opt[:2], trace, *opt[3:]))

    @property
    def stats_leaves(self) -> list[interop.Leaf]:
        """The leaves that are running statistics."""
        return [leaf for leaf in self.leaves if leaf.path[-1] in ("mean", "var")]


def _search(golden: Golden) -> _Search:
    space = SPACES["darts"]()
    size: dict[str, Any] = {
        "num_cells": int(golden["num_cells"]),
        "channels": int(golden["channels"]),
    }
    shape = golden["x_train"].shape
    model = make_supernet(
        space,
        image_shape=(shape[2], shape[3], shape[1]),
        num_classes=int(golden["num_classes"]),
        **size,
    )
    leaves = interop.supernet_leaves(space, **size)
    state_dict = read_named(golden, "params_index_json", "w")
    state_dict |= read_named(golden, "buffers_index_json", "bn_before")
    weights, batch_stats = interop.from_reference(
        state_dict, leaves, like=jax.eval_shape(model.init, jax.random.key(0))
    )
    optimizers = Optimizers(
        weight_optimizer(0.025), weight_optimizer(0.025, clip=0), alpha_optimizer(3e-4)
    )
    alphas = jax.tree.map(jnp.asarray, read_kinds(golden, "alphas_{}"))
    state = SearchState(
        step=jnp.zeros((), jnp.int32),
        key=jax.random.key(0),
        weights=weights,
        batch_stats=batch_stats,
        weight_opt=optimizers.weights.init(weights),
        alphas=alphas,
        alpha_opt=optimizers.alphas.init(alphas),
    )
    return _Search(
        golden,
        space,
        model,
        model._replace(apply=jax.jit(model.apply, static_argnames="train")),
        leaves,
        optimizers,
        state,
        read_batch(golden, "x_train", "y_train"),
        read_batch(golden, "x_valid", "y_valid"),
    )


def verify_search(golden: Golden) -> Iterator[Check]:
    """Yields the checks of a supernet: forward, gradients, hypergradients, a search step."""
    search = _search(golden)
    yield from _forward(search)
    yield from _first_order(search)
    yield from _search_step(search)
    for name, state in (
        ("unrolled_nomom", search.state),
        ("unrolled_mom", search.with_momentum()),
    ):
        yield from _second_order(search, name, state)


def _forward(search: _Search) -> Iterator[Check]:
    golden, state, valid = search.golden, search.state, search.valid
    cells = {f"cell{i}": f"cell{i}" for i in range(int(golden["num_cells"]))}
    names = {"stem_norm0": "stem"} | cells
    edge_weights = ONE_SHOT["darts"].relax(search.space, state.alphas)
    apply = jax.jit(
        apply_with_outputs(search.model, tuple(names)), static_argnames="train"
    )
    for mode in ("train", "eval"):
        logits, stats, outputs = apply(
            state.weights,
            state.batch_stats,
            valid.images,
            edge_weights,
            train=mode == "train",
        )
        prefix = f"{mode}_mode"
        for ours, theirs in names.items():
            error = relative_error(nchw(outputs[ours]), golden[f"{prefix}/{theirs}"])
            yield Check(f"{prefix}/{theirs}", error)
        error = relative_error(logits, golden[f"{prefix}/logits_valid"])
        yield Check(f"{prefix}/logits", error)
        loss = cross_entropy(logits, valid.labels).mean()
        error = relative_error(loss, golden[f"{prefix}/loss_valid"])
        yield Check(f"{prefix}/loss", error)
        if mode == "train":
            after = interop.to_reference({}, stats, search.stats_leaves)
            wanted = read_named(golden, "buffers_index_json", "bn_after_train_forward")
            yield Check("batch statistics", relative_error(after, wanted))


def _first_order(search: _Search) -> Iterator[Check]:
    golden, state = search.golden, search.state
    (loss, _), grads = jax.value_and_grad(search.loss, has_aux=True)(
        state.weights, state.alphas, search.train
    )
    yield Check("train loss", relative_error(loss, golden["train_loss"]))
    ours = interop.to_reference(grads, state.batch_stats, search.leaves)
    wanted = read_named(golden, "params_index_json", "dw_train")
    yield Check("weight gradients", relative_error(ours, wanted))
    result = bilevel.first_order(
        search.loss,
        lambda w, _: w,
        state.weights,
        state.alphas,
        search.train,
        search.valid,
    )
    wanted = read_kinds(golden, "first_order/dalphas_{}")
    yield Check("first_order/alpha gradients", relative_error(result.alphas, wanted))


def _second_order(search: _Search, name: str, state: SearchState) -> Iterator[Check]:
    golden, optimizers = search.golden, search.optimizers

    def virtual_step(weights: Weights, grads: Weights) -> Weights:
        updates, _ = optimizers.virtual.update(grads, state.weight_opt, weights)
        return optax.apply_updates(weights, updates)

    def run(hypergradient: Callable[..., Any], **options: float) -> Any:
        return hypergradient(
            search.loss,
            virtual_step,
            state.weights,
            state.alphas,
            search.train,
            search.valid,
            **options,
        )

    result = run(bilevel.finite_difference)
    wanted = read_kinds(golden, f"{name}/fd_dalphas_{{}}")
    error = relative_error(result.alphas, wanted)
    yield Check(f"{name}/finite_difference alpha gradients", error)
    error = relative_error(result.value, golden[f"{name}/unrolled_loss_valid"])
    yield Check(f"{name}/loss at the virtual weights", error)
    updates, _ = optimizers.alphas.update(result.alphas, state.alpha_opt, state.alphas)
    wanted = read_kinds(golden, f"{name}/alphas_{{}}_after_adam")
    error = relative_error(optax.apply_updates(state.alphas, updates), wanted)
    yield Check(f"{name}/alphas after Adam", error)
    for key in golden:
        if key.startswith(f"{name}/fd_r") and key.endswith("_dalphas_normal"):
            radius = key.split("/fd_r")[1].removesuffix("_dalphas_normal")
            ours = run(bilevel.finite_difference, radius=float(radius)).alphas
            wanted = read_kinds(golden, f"{name}/fd_r{radius}_dalphas_{{}}")
            # Rounding of two gradients of order 1, divided by twice the radius.
            tolerance = max(TOLERANCE, 1e-13 / float(radius))
            label = f"{name}/finite_difference, radius {radius}"
            yield Check(label, relative_error(ours, wanted), tolerance)
    wanted = read_kinds(golden, f"{name}/exact_dalphas_{{}}")
    error = relative_error(run(bilevel.unrolled).alphas, wanted)
    yield Check(f"{name}/unrolled (exact) alpha gradients", error)


def _search_step(search: _Search) -> Iterator[Check]:
    golden, start = search.golden, search.with_momentum()
    step = make_search_step(
        search.jitted,
        ONE_SHOT["darts"],
        search.space,
        search.optimizers,
        bilevel.first_order,
    )
    after, metrics = step(start, search.train, search.valid)
    ours = interop.to_reference(after.weights, after.batch_stats, search.leaves)
    wanted = read_named(golden, "params_index_json", "search_step/w_after")
    yield Check("search_step/weights", relative_error(ours, wanted))
    wanted = read_kinds(golden, "search_step/alphas_{}")
    yield Check("search_step/alphas", relative_error(after.alphas, wanted))
    error = relative_error(metrics["train_loss"], golden["search_step/train_loss"])
    yield Check("search_step/train loss", error)
    genotype = derive(search.space, ONE_SHOT["darts"].relax(search.space, start.alphas))
    same = genotype.cells == read_genotype(golden).cells
    yield Check("genotype", 0.0 if same else float("inf"))
