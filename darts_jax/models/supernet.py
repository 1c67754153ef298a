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

from darts_jax.models.layers import BatchNorm
from darts_jax.models.model import as_model
from darts_jax.models.operations import OPERATIONS, Norm, preprocess
from darts_jax.models.skeleton import DartsSkeleton, NasBench201Skeleton
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

    @nn.compact
    def __call__(
        self, x: jax.Array, edge_weights: jax.Array, *, train: bool
    ) -> jax.Array:
        allowed = np.array(self.allowed)
        mixed: Any = 0.0
        for o, primitive in enumerate(self.primitives):
            edges = np.flatnonzero(allowed[:, o])
            if primitive == "none" or not len(edges):
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
                mixed += weight[:, None, None, None, None] * y
            else:  # only some edges have this primitive: place them by a [n, m] matrix
                place = weight[:, None] * np.eye(len(allowed), dtype=x.dtype)[:, edges]
                y = jnp.broadcast_to(y, (len(edges), *y.shape[1:]))
                mixed += jnp.einsum("nm,mcbhw->ncbhw", place, y)
        if isinstance(mixed, float):  # every edge has only "none"
            x = x[:, :, :: self.stride, :: self.stride]
            mixed = jnp.zeros((len(allowed), *x.shape), x.dtype)
        return mixed


class MixedCell(nn.Module):
    """A cell of the supernet; its output is the concatenation of the nodes `space.concat`."""

    space: Space
    kind: str
    channels: int
    reduction: bool
    reduction_previous: bool
    norm: Norm

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
                name=f"source{source}",
            )(states[source], weights[np.array(edges)], train=train)
            for row, e in enumerate(edges):
                sums[space.edges[e][1]] += mixed[row]
        return jnp.concatenate([states[node] for node in space.concat], 0)


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
    stem_affine: bool = True,
    evaluation: str = "running",
) -> Model:
    """Returns the supernet of `space` as a `Model`.

    Args:
        space: the search space.
        image_shape: (H, W, C) of the input images.
        num_classes: of the classifier.
        num_cells: in all (DARTS), or a stage (NAS-Bench-201).
        channels: of the first cells.
        stem_multiplier: the DARTS stem has `stem_multiplier * channels` channels.
        stem_affine: whether the batch norm outside the cells is affine (the authors' code:
            yes; the paper: no). Inside the cells it never is in a search.
        evaluation: "running" or "batch": the statistics used when not training.
    """
    norm = functools.partial(BatchNorm, affine=False, evaluation=evaluation)
    stem_norm = functools.partial(norm, affine=stem_affine)

    def make_cell(
        kind: str,
        cell_channels: int,
        reduction: bool,
        reduction_previous: bool,
        name: str,
    ) -> nn.Module:
        return MixedCell(
            space, kind, cell_channels, reduction, reduction_previous, norm, name=name
        )

    if space.skeleton == "darts":
        module: nn.Module = DartsSkeleton(
            make_cell,
            num_cells,
            channels,
            num_classes,
            norm,
            stem_norm,
            stem_multiplier=stem_multiplier,
        )
    else:
        module = NasBench201Skeleton(
            make_cell, num_cells, channels, num_classes, norm, stem_norm
        )
    edges, operations = len(space.edges), len(space.primitives)
    sample = {k: jnp.zeros((edges, operations)) for k in space.cell_kinds}
    return as_model(module, image_shape, {"edge_weights": sample})
