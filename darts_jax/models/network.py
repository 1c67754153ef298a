"""The derived network: what a genotype builds, to be trained from scratch."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from darts_jax.errors import UserError
from darts_jax.genotype import CellGenotype, Genotype
from darts_jax.models.branches import fused_operation, mixing
from darts_jax.models.fused import BRANCHES, fuses
from darts_jax.models.layers import BatchNorm
from darts_jax.models.model import as_model
from darts_jax.models.normalise import exact
from darts_jax.models.operations import OPERATIONS, Norm, preprocess
from darts_jax.models.skeleton import (
    make_skeleton,
    reduction_cells,
)
from darts_jax.types import Model


def path_scales(key: jax.Array, probability: Any, shape: tuple[int, ...]) -> jax.Array:
    """Returns 0 with `probability` and otherwise 1 / (1 - probability).

    Args:
        key: PRNG key.
        probability: of dropping, 0 <= p < 1; may be traced.
        shape: of what is returned.
    """
    keep = 1.0 - probability
    return jax.random.bernoulli(key, keep, shape) / keep


def drop_path(x: jax.Array, scales: jax.Array) -> jax.Array:
    """Zeroes whole samples, scales the others up (Larsson et al. 2017).

    Args:
        x: `[C, B, H, W]`.
        scales: `[B]`, of `path_scales`.
    """
    scales = scales.astype(exact(x.dtype))
    return (x * scales[:, None, None]).astype(x.dtype)


class DerivedCell(nn.Module):
    """A discrete cell: a node is the sum of its operations, the output a concatenation."""

    genotype: CellGenotype
    channels: int
    reduction: bool
    reduction_previous: bool
    norm: Norm
    implementation: str = "fused"

    @nn.compact
    def __call__(
        self, *inputs: jax.Array, drop_path_probability: Any, train: bool
    ) -> jax.Array:
        states = preprocess(
            inputs, self.channels, self.reduction_previous, self.norm, train
        )
        mix = (
            mixing(self.implementation, states[0].dtype, supernet=False)
            if train
            else None
        )
        scales: Any = None
        if train and drop_path_probability is not None:
            # One draw a cell: XLA compiles a loop for each.
            paths = sum(map(len, self.genotype.nodes)), states[0].shape[1]
            key = self.make_rng("drop_path")
            scales = iter(path_scales(key, drop_path_probability, paths))
        for number, node in enumerate(self.genotype.nodes):
            total: Any = 0.0
            for row, (primitive, source) in enumerate(node):
                stride = 2 if self.reduction and source < len(inputs) else 1
                name = f"node{number}_edge{row}_{primitive}"
                x = states[source]
                chain = primitive in BRANCHES and fuses(primitive, stride)
                if chain and mix and not self.is_initializing():
                    y = fused_operation(self, name, primitive, x, stride, mix)[0]
                else:
                    build = OPERATIONS[primitive]
                    operation = build(self.channels, stride, 1, self.norm, name=name)
                    y = operation(x, train=train)[0]
                identity = primitive == "skip_connect" and stride == 1
                if scales is not None and not identity:
                    y = drop_path(y, next(scales))
                total += y
            states.append(total)
        return jnp.concatenate([states[node] for node in self.genotype.concat], 0)


# What each skeleton needs of a genotype: its cells and how many inputs they have.
CELLS = {"darts": (("normal", "reduce"), 2), "nas_bench_201": (("cell",), 1)}


def _check_genotype(genotype: Genotype) -> None:
    """Raises UserError for a genotype without the cells of its skeleton."""
    skeleton, (kinds, num_inputs) = genotype.space, CELLS[genotype.space]
    for kind in kinds:
        if kind not in genotype.cells:
            raise UserError(f"the genotype has no {kind!r} cell; needed: {list(kinds)}")
        given = genotype.cells[kind].num_inputs
        if given != num_inputs:
            raise UserError(
                f"the {kind} cell has {given} inputs; {skeleton} needs {num_inputs}"
            )
        concat = genotype.cells[kind].concat
        if skeleton == "nas_bench_201" and len(concat) > 1:
            raise UserError(
                f"the {kind} cell concatenates the states {list(concat)}; {skeleton} needs a "
                "single one"
            )


def _check_auxiliary(image_shape: tuple[int, ...], num_cells: int, stem: str) -> None:
    """Raises UserError where the auxiliary head's 5x5 pool would not fit."""
    size = min(image_shape[:2])
    halvings = 3 if stem == "imagenet" else 0
    halvings += sum(i <= 2 * num_cells // 3 for i in reduction_cells(num_cells))
    for _ in range(halvings):
        size = -(-size // 2)
    smallest = 8 if stem == "cifar" else 7  # what leaves the 2x2 convolution one pixel
    if size < smallest:
        raise UserError(
            f"model.auxiliary=True needs feature maps of {smallest}x{smallest} at 2/3 of "
            f"the depth, images of {image_shape[0]}x{image_shape[1]} give {size}x{size}; "
            "set model.auxiliary=False"
        )


def make_network(
    genotype: Genotype,
    *,
    image_shape: tuple[int, int, int],
    num_classes: int,
    num_cells: int,
    channels: int,
    stem_multiplier: int = 3,
    stem: str = "cifar",
    auxiliary: bool = False,
    implementation: str = "fused",
    precision: str = "float32",
    remat: bool = False,
    norm_groups: int = 1,
) -> Model:
    """Returns the network of `genotype` as a `Model`; all batch norm is affine.

    Args:
        genotype: the cells.
        image_shape: (H, W, C) of the input images.
        num_classes: of the classifier.
        num_cells: in all (DARTS), or a stage (NAS-Bench-201).
        channels: of the first cells.
        stem_multiplier: the CIFAR stem has `stem_multiplier * channels` channels.
        stem: "cifar" or "imagenet".
        auxiliary: with an auxiliary head: in training `apply` then returns
            `(logits, auxiliary_logits)`.
        implementation: "plain", "fused" or "merged", as for `make_supernet`; here
            "fused" means plain operations where there are no kernels.
        precision: "float32" or "bfloat16", of activations; weights, statistics, logits
            and gradients are float32 either way.
        remat: whether a gradient computes the cells again, of which only the outputs stay.
        norm_groups: parts of a batch that batch norm takes the moments of apart.

    Raises:
        UserError: the skeleton of the genotype's space lacks one of its cells, the stem
            or the auxiliary head, the images are too small for that head, or there is no
            such precision.
    """
    norm = functools.partial(BatchNorm, affine=True, groups=norm_groups)
    _check_genotype(genotype)

    cell = functools.partial(
        DerivedCell,
        norm=norm,
        implementation=implementation if norm_groups == 1 else "plain",
    )

    def make_cell(kind: str, *place: Any, name: str) -> nn.Module:
        return cell(genotype.cells[kind], *place, name=name)

    module = make_skeleton(
        genotype.space,
        make_cell=make_cell,
        num_cells=num_cells,
        channels=channels,
        num_classes=num_classes,
        norm=norm,
        stem_norm=norm,
        stem=stem,
        stem_multiplier=stem_multiplier,
        auxiliary=auxiliary,
        remat=remat,
    )
    if auxiliary:
        _check_auxiliary(image_shape, num_cells, stem)

    def cell_arguments(drop_path: Any = None) -> dict[str, Any]:
        return {"drop_path_probability": drop_path}

    return as_model(
        module, image_shape, cell_arguments(), cell_arguments, precision=precision
    )
