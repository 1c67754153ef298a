"""Where every tensor of the reference's networks lives in ours.

The names are those of the state dicts of github.com/quark0/darts, `cnn/model_search.py` and
`cnn/model.py`.
"""

from collections.abc import Iterator
from typing import NamedTuple

from darts_jax.errors import UserError
from darts_jax.genotype import Genotype
from darts_jax.models.skeleton import reduction_cells
from darts_jax.spaces import Space


class Leaf(NamedTuple):
    """Where one tensor of the reference lives in our pytrees."""

    reference: str  # name in the state dict
    path: tuple[str, ...]  # keys into weights, or into batch_stats for mean and var
    edge: int | None  # index on the leading axis; None: the array has no edge axis


# Modules of each kind of operation: the reference's child -> (our child, what it holds).
_SEP = {
    "op.1": ("depth0", "depthwise"),
    "op.2": ("point0", "pointwise"),
    "op.3": ("norm0", "norm"),
    "op.5": ("depth1", "depthwise"),
    "op.6": ("point1", "pointwise"),
    "op.7": ("norm1", "norm"),
}
_DIL = {name: _SEP[name] for name in ("op.1", "op.2", "op.3")}
_CONV = {"op.1": ("conv0", "conv"), "op.2": ("norm0", "norm")}
_CONV7 = {"1": ("conv0", "conv"), "2": ("conv1", "conv"), "3": ("norm0", "norm")}
_REDUCE = {
    "conv_1": ("conv0", "conv"),
    "conv_2": ("conv1", "conv"),
    "bn": ("norm0", "norm"),
}


def _module(
    reference: str,
    path: tuple[str, ...],
    holds: str,
    *,
    edge: int | None = 0,
    affine: bool,
) -> Iterator[Leaf]:
    """Yields the leaves of one convolution or batch norm."""
    if holds != "norm":
        yield Leaf(f"{reference}.weight", (*path, holds), edge)
        return
    if affine:
        yield Leaf(f"{reference}.weight", (*path, "scale"), edge)
        yield Leaf(f"{reference}.bias", (*path, "bias"), edge)
    yield Leaf(f"{reference}.running_mean", (*path, "mean"), edge)
    yield Leaf(f"{reference}.running_var", (*path, "var"), edge)


def operation_leaves(
    primitive: str,
    stride: int,
    reference: str,
    path: tuple[str, ...],
    *,
    edge: int = 0,
    affine: bool,
    pool_norm: bool = False,
) -> Iterator[Leaf]:
    """Yields the leaves of one primitive.

    Args:
        primitive: its name.
        stride: a skip_connect of stride 2 is a FactorizedReduce.
        reference: the prefix of its names in the state dict, "" or ending in a dot.
        path: of our module.
        edge: its index among the edges that share the arrays.
        affine: whether its batch norm has scale and bias.
        pool_norm: whether a pool is followed by a batch norm (a search cell).
    """
    if primitive.startswith("sep_conv"):
        children = _SEP
    elif primitive.startswith("dil_conv"):
        children = _DIL
    elif primitive == "conv_7x1_1x7":
        children = _CONV7
    elif primitive == "skip_connect" and stride == 2:
        children, path = _REDUCE, (*path, "reduce")
    elif "_pool_" in primitive and pool_norm:
        children = {"1": ("norm0", "norm")}
        affine = False
    else:
        children = {}
    for child, (name, holds) in children.items():
        yield from _module(
            f"{reference}{child}", (*path, name), holds, edge=edge, affine=affine
        )


def _preprocess_leaves(i: int, reduced: bool, affine: bool) -> Iterator[Leaf]:
    """Yields the leaves of the two 1x1 convolutions at the entry of cell `i`."""
    for k in (0, 1):
        children = _REDUCE if reduced and k == 0 else _CONV
        for child, (name, holds) in children.items():
            yield from _module(
                f"cells.{i}.preprocess{k}.{child}",
                (f"cell{i}", f"preprocess{k}", name),
                holds,
                affine=affine,
            )


def _linear_leaves(
    reference: str, path: tuple[str, ...], fan_in: int
) -> Iterator[Leaf]:
    yield Leaf(f"{reference}.weight", (*path, "linear"), None)
    yield Leaf(f"{reference}.bias", (*path, f"bias_of_{fan_in}"), None)


def supernet_leaves(
    space: Space, *, num_cells: int, channels: int, stem_affine: bool = True
) -> list[Leaf]:
    """Returns the leaves of the search network `cnn/model_search.py`.

    Args:
        space: of the DARTS family; `space.primitives` in the reference's order.
        num_cells: as the reference's `layers`.
        channels: of the first cells.
        stem_affine: as given to `make_supernet`.
    """
    leaves = [
        *_module("stem.0", ("stem_conv0",), "conv", affine=False),
        *_module("stem.1", ("stem_norm0",), "norm", affine=stem_affine),
    ]
    reductions, reduced = reduction_cells(num_cells), False
    for i in range(num_cells):
        reduction = i in reductions
        channels *= 2 if reduction else 1
        leaves += _preprocess_leaves(i, reduced, affine=False)
        kind = "reduce" if reduction else "normal"
        places: dict[tuple[int, str], int] = {}
        for e, (source, _) in enumerate(space.edges):
            stride = 2 if reduction and source < space.num_inputs else 1
            for o, primitive in enumerate(space.allowed(kind, e)):
                edge = places.setdefault((source, primitive), 0)
                places[source, primitive] += 1
                leaves += operation_leaves(
                    primitive,
                    stride,
                    f"cells.{i}._ops.{e}._ops.{o}.",
                    (f"cell{i}", f"source{source}", primitive),
                    edge=edge,
                    affine=False,
                    pool_norm=True,
                )
        reduced = reduction
    fan_in = channels * len(space.concat)
    return leaves + list(_linear_leaves("classifier", ("classifier",), fan_in))


def network_leaves(
    genotype: Genotype,
    *,
    num_cells: int,
    channels: int,
    stem: str = "cifar",
    auxiliary: bool = False,
) -> list[Leaf]:
    """Returns the leaves of a derived network, `cnn/model.py`.

    Args:
        genotype: the cells "normal" and "reduce".
        num_cells: as the reference's `layers`.
        channels: of the first cells.
        stem: "cifar" (NetworkCIFAR) or "imagenet" (NetworkImageNet).
        auxiliary: whether the auxiliary head's tensors are there.

    Raises:
        UserError: the genotype is not of the DARTS family.
    """
    if genotype.space != "darts":
        raise UserError(
            f"a genotype of {genotype.space} has no network in the reference; only of darts"
        )
    leaves = list(_stem_leaves(stem))
    reductions, reduced = reduction_cells(num_cells), stem == "imagenet"
    for i in range(num_cells):
        reduction = i in reductions
        channels *= 2 if reduction else 1
        leaves += _preprocess_leaves(i, reduced, affine=True)
        cell, number = genotype.cells["reduce" if reduction else "normal"], 0
        for n, node in enumerate(cell.nodes):
            for row, (primitive, source) in enumerate(node):
                stride = 2 if reduction and source < cell.num_inputs else 1
                leaves += operation_leaves(
                    primitive,
                    stride,
                    f"cells.{i}._ops.{number}.",
                    (f"cell{i}", f"node{n}_edge{row}_{primitive}"),
                    affine=True,
                )
                number += 1
        reduced = reduction
        fan_in = channels * len(cell.concat)
    if auxiliary:
        leaves += _auxiliary_leaves(stem)
    return leaves + list(_linear_leaves("classifier", ("classifier",), fan_in))


def _stem_leaves(stem: str) -> Iterator[Leaf]:
    convolutions = (
        [("stem.0", "stem.1")]
        if stem == "cifar"
        else [("stem0.0", "stem0.1"), ("stem0.3", "stem0.4"), ("stem1.1", "stem1.2")]
    )
    for i, (conv, norm) in enumerate(convolutions):
        yield from _module(conv, (f"stem_conv{i}",), "conv", affine=True)
        yield from _module(norm, (f"stem_norm{i}",), "norm", affine=True)


def _auxiliary_leaves(stem: str) -> Iterator[Leaf]:
    children = {"2": ("conv0", "conv"), "3": ("norm0", "norm"), "5": ("conv1", "conv")}
    if stem != "imagenet":
        children["6"] = ("norm1", "norm")
    for child, (name, holds) in children.items():
        yield from _module(
            f"auxiliary_head.features.{child}", ("auxiliary", name), holds, affine=True
        )
    yield from _linear_leaves(
        "auxiliary_head.classifier", ("auxiliary", "classifier"), 768
    )
