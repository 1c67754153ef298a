"""The NAS-Bench-201 supernet in plain PyTorch (Dong and Yang 2020, section 2.1)."""

from torch import Tensor, nn
from torch_networks import EdgeWeights, batch_norm, conv_stem, mixed_nodes
from torch_operations import MixedOperation, Norm, relu_conv_norm

from darts_jax.spaces import Space


class ResidualBlock(nn.Module):
    """NAS-Bench-201's reduction: two 3x3 convolutions, shortcut of 2x2 mean and 1x1."""

    def __init__(self, inputs: int, outputs: int, norm: Norm) -> None:
        super().__init__()
        self.conv_a = relu_conv_norm(inputs, outputs, 3, 2, norm)
        self.conv_b = relu_conv_norm(outputs, outputs, 3, 1, norm)
        self.pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_b(self.conv_a(x)) + self.shortcut(self.pool(x))


class NasBench201Cell(nn.Module):
    """A mixed cell with one input, which it takes as it is."""

    def __init__(self, space: Space, channels: int, norm: Norm) -> None:
        super().__init__()
        self.space = space
        self._ops = nn.ModuleList(
            MixedOperation(space.primitives, channels, 1, norm, pool_norm=False)
            for _ in space.edges
        )

    def forward(self, x: Tensor, weights: tuple[tuple[Tensor, ...], ...]) -> Tensor:
        return mixed_nodes(self.space, self._ops, [x], weights)


class NasBench201Supernet(nn.Module):
    """The search network of NAS-Bench-201: three stages of `num_cells` cells.

    Batch norm in the cells keeps no statistics, as in NATS-Bench.
    """

    def __init__(
        self,
        space: Space,
        *,
        num_cells: int,
        channels: int,
        image_channels: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        norm, outer = batch_norm(False, running=False), batch_norm(True)
        self.stem = conv_stem(image_channels, channels, outer)
        self.cells = nn.ModuleList()
        for stage in range(3):
            if stage:
                self.cells.append(ResidualBlock(channels, 2 * channels, outer))
                channels *= 2
            for _ in range(num_cells):
                self.cells.append(NasBench201Cell(space, channels, norm))
        self.last_norm = outer(channels)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor, edge_weights: EdgeWeights) -> Tensor:
        x = self.stem(images)
        for cell in self.cells:
            mixed = isinstance(cell, NasBench201Cell)
            x = cell(x, edge_weights["cell"]) if mixed else cell(x)
        return self.classifier(self.last_norm(x).relu_().mean((2, 3)))
