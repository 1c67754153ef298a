"""The supernet: cells whose edges are mixed operations (Liu et al. 2019, eq. 2).

A node is the sum over its predecessors of mixed operations, a mixed operation the sum over
primitives `sum_o edge_weights[e, o] * o(x)`. All edges that leave one source state are one
stack, so a primitive's kernels for them are one array and one product.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from darts_jax.errors import UserError, unknown
from darts_jax.models.branches import BranchMoments, Mixing, kernels_of, mixing
from darts_jax.models.fused import (
    BRANCHES,
    SHARED,
    Branches,
    Operands,
    Shared,
    fuses,
    stages_of,
)
from darts_jax.models.layers import BatchNorm
from darts_jax.models.model import as_model
from darts_jax.models.normalise import weighted
from darts_jax.models.operations import OPERATIONS, Norm, preprocess
from darts_jax.models.skeleton import make_skeleton
from darts_jax.spaces import Space
from darts_jax.types import EdgeWeights, Model


class MixedEdges(nn.Module):
    """The mixed operations of the n edges that leave one source state.

    `[C, B, H, W]` and edge weights `[n, O]` to `[n, C, B, H', W']`. `allowed` `[n, O]` says
    which primitives each edge has.
    """

    primitives: tuple[str, ...]
    allowed: tuple[tuple[bool, ...], ...]
    channels: int
    stride: int
    norm: Norm
    pool_norm: bool
    implementation: str

    @nn.compact
    def __call__(
        self, x: jax.Array, edge_weights: jax.Array, *, train: bool
    ) -> jax.Array:
        allowed = np.array(self.allowed)
        mixed: Any = 0.0
        mix = mixing(self.implementation, x.dtype, supernet=True) if train else None
        branches = self._branches() if mix else []
        if mix and branches:
            mixed = self._mixed_branches(x, edge_weights, branches, mix)
        for o, primitive in enumerate(self.primitives):
            edges = np.flatnonzero(allowed[:, o])
            if primitive == "none" or not len(edges) or o in branches:
                continue  # zero times its weight: nothing to add, no gradient
            extra = {"pool_norm": self.pool_norm} if "_pool_" in primitive else {}
            operation = OPERATIONS[primitive](
                self.channels,
                self.stride,
                len(edges),
                self.norm,
                name=primitive,
                **extra,
            )
            y = operation(x, train=train)
            weight = edge_weights[:, o]
            if len(edges) == len(allowed):
                mixed += weighted(weight[:, None], y)
            else:  # only some edges have this primitive: place them by a [n, m] matrix
                y = weighted(weight[edges, None], y)
                place = np.eye(len(allowed), dtype=y.dtype)[:, edges]
                mixed += jnp.einsum("nm,mcbhw->ncbhw", place, y)
        if isinstance(mixed, float):  # every edge has only "none"
            x = x[:, :, :: self.stride, :: self.stride]
            mixed = jnp.zeros((len(allowed), *x.shape), x.dtype)
        return mixed

    def _branches(self) -> list[int]:
        """Returns the primitives that one function computes: those that every edge has."""
        if self.is_initializing():
            return []
        return [
            o
            for o, everywhere in enumerate(np.all(self.allowed, axis=0))
            if everywhere and fuses(self.primitives[o], self.stride)
        ]

    def _mixed_branches(
        self, x: jax.Array, edge_weights: jax.Array, branches: list[int], mix: Mixing
    ) -> jax.Array:
        ordered = sorted(branches, key=lambda o: self.primitives[o] in SHARED)
        names = [self.primitives[o] for o in ordered]
        chained = [name for name in names if name in BRANCHES]
        chains = tuple(stages_of(name, self.stride) for name in chained)
        weights = self.variables.get("params", {})
        kernels = tuple(
            kernels_of(weights[name], len(chain))
            for name, chain in zip(chained, chains, strict=True)
        )
        operands = Operands(x, edge_weights[:, np.array(ordered)], kernels)
        shared = tuple(
            Shared(SHARED[name], self.pool_norm and "_pool_" in name)
            for name in names[len(chained) :]
        )
        mixed, moments = mix(operands, Branches(chains, shared, self.stride))
        for name, found in zip(names, moments, strict=True):
            if found:
                BranchMoments(name=name)(found)
        return mixed


class MixedCell(nn.Module):
    """A cell of the supernet; its output is the concatenation of the nodes `space.concat`."""

    space: Space
    kind: str
    channels: int
    reduction: bool
    reduction_previous: bool
    norm: Norm
    implementation: str

    @nn.compact
    def __call__(
        self, *inputs: jax.Array, edge_weights: EdgeWeights, train: bool
    ) -> jax.Array:
        space = self.space
        weights, mask = edge_weights[self.kind], space.mask(self.kind)
        states = preprocess(
            inputs, self.channels, self.reduction_previous, self.norm, train
        )
        sums: dict[int, Any] = dict.fromkeys(
            range(space.num_inputs, _num_states(space)), 0.0
        )
        for source in range(_num_states(space)):
            edges = [e for e, (start, _) in enumerate(space.edges) if start == source]
            if source >= space.num_inputs:
                states.append(sums[source])
            if not edges:
                continue
            mixed = MixedEdges(
                space.primitives,
                tuple(tuple(bool(a) for a in mask[e]) for e in edges),
                self.channels,
                2 if self.reduction and source < space.num_inputs else 1,
                self.norm,
                space.skeleton == "darts",
                self.implementation,
                name=f"source{source}",
            )(states[source], weights[np.array(edges)], train=train)
            # Not mixed[row]: the gradient of a split is a concatenation, of an index a padding.
            for e, part in zip(edges, jnp.split(mixed, len(edges)), strict=True):
                sums[space.edges[e][1]] += jnp.squeeze(part, 0)
        return jnp.concatenate([states[node] for node in space.concat], 0)


# What batch norm normalises with when not training, inside the cells and outside of them.
EVALUATIONS = {
    "running": ("running", "running"),
    "batch": ("batch", "batch"),
    "batch_in_cells": ("batch", "running"),
}


def _num_states(space: Space) -> int:
    """Returns the number of states of a cell: inputs and intermediate nodes."""
    return space.num_inputs + space.num_nodes


def make_supernet(
    space: Space,
    *,
    image_shape: tuple[int, int, int],
    num_classes: int,
    num_cells: int,
    channels: int,
    stem_multiplier: int = 3,
    stem: str = "cifar",
    stem_affine: bool = True,
    evaluation: str = "running",
    implementation: str = "fused",
    precision: str = "float32",
    remat: bool = False,
    norm_groups: int = 1,
) -> Model:
    """Returns the supernet of `space` as a `Model`.

    Args:
        space: the search space.
        image_shape: (H, W, C) of the input images.
        num_classes: of the classifier.
        num_cells: in all (DARTS), or a stage (NAS-Bench-201).
        channels: of the first cells.
        stem_multiplier: the CIFAR stem has `stem_multiplier * channels` channels.
        stem: "cifar", or of the DARTS skeleton "imagenet": three convolutions of stride 2.
        stem_affine: whether the batch norm outside the cells is affine (the authors' code:
            yes; the paper: no). Inside the cells it never is in a search.
        evaluation: the statistics used when not training: "running", those of the "batch",
            or "batch_in_cells" (NATS-Bench): the batch's there, running ones outside.
        implementation: "plain", every primitive a module of its own with JAX's gradients;
            or the same function and parameters, in training and without norm_groups, by
            fewer and faster operations: "merged", by few, large matrix products, or "fused",
            what is fastest: on one CPU device our kernels (in float32), elsewhere merged
            operations.
        precision: "float32" or "bfloat16", of activations; weights, statistics, logits
            and gradients are float32 either way.
        remat: whether a gradient computes the cells again, of which only the outputs stay.
        norm_groups: parts of a batch that batch norm takes the moments of apart.

    Raises:
        UserError: there is no such precision or evaluation, or the space's skeleton lacks
            the stem; `apply` raises it for edge weights of another space's shape.
    """
    if evaluation not in EVALUATIONS:
        raise unknown("batch_norm.evaluation", evaluation, EVALUATIONS)
    inside, outside = EVALUATIONS[evaluation]
    norm = functools.partial(
        BatchNorm, affine=False, evaluation=inside, groups=norm_groups
    )
    stem_norm = functools.partial(norm, affine=stem_affine, evaluation=outside)

    make_cell = functools.partial(
        MixedCell,
        space,
        norm=norm,
        implementation=implementation if norm_groups == 1 else "plain",
    )
    module = make_skeleton(
        space.skeleton,
        make_cell=make_cell,
        num_cells=num_cells,
        channels=channels,
        num_classes=num_classes,
        norm=norm,
        stem_norm=stem_norm,
        stem=stem,
        stem_multiplier=stem_multiplier,
        remat=remat,
    )
    cell_arguments = functools.partial(_cell_arguments, space)
    shape = len(space.edges), len(space.primitives)
    sample = {k: jnp.zeros(shape, jnp.float32) for k in space.cell_kinds}
    arguments = cell_arguments(sample), cell_arguments
    return as_model(module, image_shape, *arguments, precision=precision)


def _cell_arguments(space: Space, edge_weights: EdgeWeights) -> dict[str, Any]:
    """Returns what a cell is called with; raises UserError for another space's weights."""
    given = {kind: jnp.shape(values) for kind, values in edge_weights.items()}
    shape = len(space.edges), len(space.primitives)
    wanted = dict.fromkeys(space.cell_kinds, shape)
    if given != wanted:  # indices beyond an array's end are no error to JAX
        raise UserError(f"edge weights have the shapes {given}, not {wanted}")
    return {"edge_weights": edge_weights}
