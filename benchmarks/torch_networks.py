"""Supernet and derived network in plain PyTorch: the baseline of the benchmark.

Written from the paper and the published settings; search spaces and genotypes are ours.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch_operations import (
    OPERATIONS,
    FactorizedReduce,
    MixedOperation,
    Norm,
    relu_conv_norm,
)

from darts_jax.genotype import CellGenotype, Genotype
from darts_jax.spaces import Space

EdgeWeights = dict[str, tuple[tuple[Tensor, ...], ...]]  # {kind: [E][O] scalars}
Logits = Tensor | tuple[Tensor, Tensor]


def batch_norm(affine: bool, running: bool = True) -> Norm:
    """Returns what builds a batch norm; without `running` it keeps no statistics."""
    return partial(nn.BatchNorm2d, affine=affine, track_running_stats=running)


class DartsCell(nn.Module):
    """What mixed and derived cells share: the projections of the two inputs."""

    def __init__(
        self, inputs: tuple[int, int], channels: int, reduced: bool, norm: Norm
    ) -> None:
        super().__init__()
        older, newer = inputs
        self.preprocess0 = (
            FactorizedReduce(older, channels, norm)
            if reduced
            else relu_conv_norm(older, channels, 1, 1, norm)
        )
        self.preprocess1 = relu_conv_norm(newer, channels, 1, 1, norm)


class MixedCell(DartsCell):
    """A cell of the supernet."""

    def __init__(
        self,
        space: Space,
        kind: str,
        inputs: tuple[int, int],
        channels: int,
        reduced: bool,
        norm: Norm,
    ) -> None:
        super().__init__(inputs, channels, reduced, norm)
        self.space, self.kind = space, kind
        self._ops = nn.ModuleList(
            MixedOperation(
                space.primitives,
                channels,
                2 if kind == "reduce" and source < space.num_inputs else 1,
                norm,
                pool_norm=True,
            )
            for source, _ in space.edges
        )

    def forward(self, s0: Tensor, s1: Tensor, edge_weights: EdgeWeights) -> Tensor:
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        return mixed_nodes(self.space, self._ops, states, edge_weights[self.kind])


def mixed_nodes(
    space: Space,
    operations: nn.ModuleList,
    states: list[Tensor],
    weights: tuple[tuple[Tensor, ...], ...],
) -> Tensor:
    """Returns a mixed cell's output: its nodes, each the sum of its edges, concatenated."""
    for target in range(space.num_inputs, space.num_inputs + space.num_nodes):
        first, *rest = space.incoming(target)
        node = operations[first](states[space.edges[first][0]], weights[first])
        for e in rest:
            node = node + operations[e](states[space.edges[e][0]], weights[e])
        states.append(node)
    chosen = [states[i] for i in space.concat]
    return chosen[0] if len(chosen) == 1 else torch.cat(chosen, 1)


def conv_stem(inputs: int, outputs: int, norm: Norm) -> nn.Sequential:
    """Dense 3x3 convolution, batch norm."""
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return nn.Sequential(conv, norm(outputs))


def _plan(num_cells: int) -> list[str]:
    """Returns the kind of every cell: reduction cells stand at 1/3 and 2/3 of the depth."""
    reductions = {num_cells // 3, 2 * num_cells // 3}
    return ["reduce" if i in reductions else "normal" for i in range(num_cells)]


class Supernet(nn.Module):
    """The search network of a space of the DARTS family."""

    def __init__(
        self,
        space: Space,
        *,
        num_cells: int,
        channels: int,
        image_channels: int,
        num_classes: int,
        stem_multiplier: int = 3,
    ) -> None:
        super().__init__()
        norm = batch_norm(False)
        stem = stem_multiplier * channels
        self.stem = conv_stem(image_channels, stem, batch_norm(True))
        self.cells = nn.ModuleList()
        inputs, reduced = (stem, stem), False
        for kind in _plan(num_cells):
            channels *= 2 if kind == "reduce" else 1
            self.cells.append(MixedCell(space, kind, inputs, channels, reduced, norm))
            inputs = (inputs[1], channels * len(space.concat))
            reduced = kind == "reduce"
        self.classifier = nn.Linear(inputs[1], num_classes)

    def forward(self, images: Tensor, edge_weights: EdgeWeights) -> Tensor:
        s0 = s1 = self.stem(images)
        for cell in self.cells:
            s0, s1 = s1, cell(s0, s1, edge_weights)
        return self.classifier(s1.mean((2, 3)))


def drop_path(x: Tensor, probability: float) -> Tensor:
    """Zeroes whole samples with `probability`, scales the others up."""
    keep = 1 - probability
    mask = torch.empty(len(x), 1, 1, 1, dtype=x.dtype, device=x.device)
    return x * mask.bernoulli_(keep).div_(keep)


class DerivedCell(DartsCell):
    """A discrete cell of a genotype."""

    def __init__(
        self,
        genotype: CellGenotype,
        kind: str,
        inputs: tuple[int, int],
        channels: int,
        reduced: bool,
        norm: Norm,
    ) -> None:
        super().__init__(inputs, channels, reduced, norm)
        self.genotype = genotype
        edges = [edge for node in genotype.nodes for edge in node]
        strides = [2 if kind == "reduce" and source < 2 else 1 for _, source in edges]
        self._ops = nn.ModuleList(
            OPERATIONS[primitive](channels, stride, norm)
            for (primitive, _), stride in zip(edges, strides, strict=True)
        )

    def forward(self, s0: Tensor, s1: Tensor, probability: float) -> Tensor:
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        operations = iter(self._ops)
        for node in self.genotype.nodes:
            outputs = []
            for _, source in node:
                operation = next(operations)
                y = operation(states[source])
                if probability and not isinstance(operation, nn.Identity):
                    y = drop_path(y, probability)
                outputs.append(y)
            states.append(sum(outputs[1:], outputs[0]))
        return torch.cat([states[i] for i in self.genotype.concat], 1)


class AuxiliaryHead(nn.Module):
    """The classifier at 2/3 of the depth; it rectifies its input in place."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.ReLU(inplace=True),
            nn.AvgPool2d(5, 3, count_include_pad=False),
            nn.Conv2d(channels, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(inplace=True),
            nn.Conv2d(128, 768, 2, bias=False),
            nn.BatchNorm2d(768),
            nn.ReLU(inplace=True),
        )
        self.classifier = nn.Linear(768, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


class Network(nn.Module):
    """The network of a genotype, for CIFAR-sized images; in training (logits, auxiliary)."""

    def __init__(
        self,
        genotype: Genotype,
        *,
        num_cells: int,
        channels: int,
        image_channels: int,
        num_classes: int,
        stem_multiplier: int = 3,
        auxiliary: bool = False,
    ) -> None:
        super().__init__()
        norm = batch_norm(True)
        stem = stem_multiplier * channels
        self.stem = conv_stem(image_channels, stem, norm)
        self.cells = nn.ModuleList()
        self.head_after = 2 * num_cells // 3 if auxiliary else -1
        inputs, reduced = (stem, stem), False
        for i, kind in enumerate(_plan(num_cells)):
            channels *= 2 if kind == "reduce" else 1
            cell = genotype.cells[kind]
            self.cells.append(DerivedCell(cell, kind, inputs, channels, reduced, norm))
            inputs = (inputs[1], channels * len(cell.concat))
            reduced = kind == "reduce"
            if i == self.head_after:
                self.auxiliary_head = AuxiliaryHead(inputs[1], num_classes)
        self.classifier = nn.Linear(inputs[1], num_classes)

    def forward(self, images: Tensor, probability: float = 0.0) -> Logits:
        s0 = s1 = self.stem(images)
        auxiliary = None
        for i, cell in enumerate(self.cells):
            s0, s1 = s1, cell(s0, s1, probability if self.training else 0.0)
            if i == self.head_after and self.training:
                auxiliary = self.auxiliary_head(s1)
        logits = self.classifier(s1.mean((2, 3)))
        return logits if auxiliary is None else (logits, auxiliary)
