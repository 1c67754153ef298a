"""The macro structure around the cells: stem, stack of cells, heads.

A skeleton does not know whether its cells are mixed (supernet) or discrete (network): it
gets `make_cell(kind, channels, reduction, reduction_previous, name)` and passes
`cell_arguments` on to every cell.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from darts_jax.errors import UserError, unknown
from darts_jax.models.layers import Conv, Linear, avg_pool
from darts_jax.models.normalise import exact
from darts_jax.models.operations import Norm, ReLUConvBN


class AuxiliaryHead(nn.Module):
    """The classifier at 2/3 of the depth that helps training (Szegedy et al. 2015).

    CIFAR: pool 5x5 stride 3 on 8x8; ImageNet: stride 2 on 7x7 and no second batch norm
    (left out in the reference, kept so by its authors for consistency).
    """

    num_classes: int
    stem: str
    norm: Norm

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        stride = 2 if self.stem == "imagenet" else 3
        x = avg_pool(x, size=5, stride=stride, pad=0)  # of an input already rectified
        x = Conv(128, (1, 1), name="conv0")(x)
        x = nn.relu(self.norm(name="norm0")(x, train=train))[0]
        x = Conv(768, (2, 2), name="conv1")(x)
        if self.stem != "imagenet":
            x = self.norm(name="norm1")(x, train=train)
        return Linear(self.num_classes, name="classifier")(_pooled(nn.relu(x)[0]))


def _pooled(x: jax.Array) -> jax.Array:
    """Global average pool, `[C, B, H, W]` to `[B, C]`, in float32 at least."""
    return x.astype(exact(x.dtype)).mean((-2, -1)).T


def _run(
    cell: nn.Module,
    states: tuple[jax.Array, ...],
    arguments: dict[str, Any],
    *,
    train: bool,
    remat: bool,
) -> jax.Array:
    """Returns a cell's output; with `remat` a gradient computes its inside again."""

    def through(
        cell: Any, states: tuple[jax.Array, ...], arguments: dict[str, Any]
    ) -> jax.Array:
        return cell(*states, train=train, **arguments)

    if remat and train and not cell.is_initializing():
        through = nn.remat(through)
    return through(cell, states, arguments)


def reduction_cells(num_cells: int) -> set[int]:
    """Returns the indices of the reduction cells: at 1/3 and 2/3 of the depth."""
    return {num_cells // 3, 2 * num_cells // 3}


class DartsSkeleton(nn.Module):
    """The DARTS network: stem, cells fed by the two before, channels doubled at reductions."""

    make_cell: Callable[..., nn.Module]
    num_cells: int
    channels: int
    num_classes: int
    norm: Norm
    stem_norm: Norm
    stem_multiplier: int = 3
    stem: str = "cifar"
    auxiliary: bool = False
    remat: bool = False

    @nn.compact
    def __call__(
        self, images: jax.Array, cell_arguments: dict[str, Any], *, train: bool
    ) -> Any:
        s0, s1 = self._stem(images.transpose(3, 0, 1, 2), train)
        reductions = reduction_cells(self.num_cells)
        channels, auxiliary = self.channels, None
        reduction_previous = self.stem == "imagenet"
        for i in range(self.num_cells):
            reduction = i in reductions
            channels *= 2 if reduction else 1
            kind = "reduce" if reduction else "normal"
            cell = self.make_cell(
                kind, channels, reduction, reduction_previous, name=f"cell{i}"
            )
            out = _run(cell, (s0, s1), cell_arguments, train=train, remat=self.remat)
            s0, s1 = s1, out
            reduction_previous = reduction
            if self.auxiliary and i == 2 * self.num_cells // 3:
                head = AuxiliaryHead(
                    self.num_classes, self.stem, self.norm, name="auxiliary"
                )
                # Built in evaluation too when initialising, run in training only.
                if train or self.is_initializing():
                    # The reference's head rectifies its input in place, so what follows
                    # sees it too. Cells rectify their inputs anyway: it only shows when
                    # this is the last cell (three cells or fewer).
                    s1 = nn.relu(s1)
                    auxiliary = head(s1, train=train)
        logits = Linear(self.num_classes, name="classifier")(_pooled(s1))
        return logits if auxiliary is None else (logits, auxiliary)

    def _stem(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        if self.stem == "cifar":
            channels = self.stem_multiplier * self.channels
            x = Conv(channels, (3, 3), padding=(1, 1), name="stem_conv0")(x)
            x = self.stem_norm(name="stem_norm0")(x, train=train)[0]
            return x, x

        def conv(x: jax.Array, i: int, channels: int) -> jax.Array:
            x = Conv(channels, (3, 3), (2, 2), (1, 1), name=f"stem_conv{i}")(x)
            return self.stem_norm(name=f"stem_norm{i}")(x, train=train)[0]

        s0 = conv(nn.relu(conv(x, 0, max(1, self.channels // 2))), 1, self.channels)
        return s0, conv(nn.relu(s0), 2, self.channels)


class ResidualBlock(nn.Module):
    """NAS-Bench-201's reduction: two 3x3 ReLU-Conv-BN, shortcut of 2x2 mean and 1x1."""

    channels: int
    norm: Norm

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = ReLUConvBN(self.channels, 2, 1, self.norm, 3, name="conv_a")(x, train=train)
        y = ReLUConvBN(self.channels, 1, 1, self.norm, 3, name="conv_b")(
            y[0], train=train
        )
        # An odd size's last row and column stand alone, as the convolutions see them.
        odd = [(0, size % 2) for size in x.shape[-2:]]
        x = jnp.pad(x, [(0, 0), (0, 0), *odd], mode="edge")
        shortcut = avg_pool(x, size=2, stride=2, pad=0)
        return y[0] + Conv(self.channels, (1, 1), name="shortcut")(shortcut)[0]


class NasBench201Skeleton(nn.Module):
    """NAS-Bench-201's network: three stages of `num_cells` cells at C, 2C and 4C channels."""

    make_cell: Callable[..., nn.Module]
    num_cells: int
    channels: int
    num_classes: int
    norm: Norm
    stem_norm: Norm
    remat: bool = False

    @nn.compact
    def __call__(
        self, images: jax.Array, cell_arguments: dict[str, Any], *, train: bool
    ) -> Any:
        x = images.transpose(3, 0, 1, 2)
        x = Conv(self.channels, (3, 3), padding=(1, 1), name="stem_conv0")(x)
        x = self.stem_norm(name="stem_norm0")(x, train=train)[0]
        for stage in range(3):
            channels = self.channels * 2**stage
            if stage:
                x = ResidualBlock(channels, self.stem_norm, name=f"reduce{stage}")(
                    x, train=train
                )
            for i in range(self.num_cells):
                name = f"cell{stage * self.num_cells + i}"
                cell = self.make_cell("cell", channels, False, False, name=name)
                x = _run(cell, (x,), cell_arguments, train=train, remat=self.remat)
        x = nn.relu(self.stem_norm(name="last_norm")(x, train=train))
        return Linear(self.num_classes, name="classifier")(_pooled(x))


STEMS = ("cifar", "imagenet")


def make_skeleton(
    skeleton: str,
    *,
    stem: str,
    stem_multiplier: int,
    auxiliary: bool = False,
    **shared: Any,
) -> nn.Module:
    """Returns the module of the skeleton "darts" or "nas_bench_201".

    shared: the fields that both have, from make_cell to remat.

    Raises:
        UserError: there is no such stem, or this skeleton has not this stem, or no
            auxiliary head.
    """
    if stem not in STEMS:
        raise unknown("model.stem", stem, STEMS)
    if skeleton == "darts":
        return DartsSkeleton(
            **shared, stem_multiplier=stem_multiplier, stem=stem, auxiliary=auxiliary
        )
    for name, value, default in (
        ("stem", stem, "cifar"),
        ("auxiliary", auxiliary, False),
    ):
        if value != default:
            raise UserError(
                f"model.{name}={value!r} needs the darts skeleton, this is {skeleton}"
            )
    return NasBench201Skeleton(**shared)
