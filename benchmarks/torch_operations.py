"""The primitives in plain PyTorch, NCHW, as the paper describes them (Liu et al. 2019, 3.1).

Parameters carry the names of the authors' state dicts, so that their weights load. A
rectifier works in place where its input is nobody else's.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Norm = Callable[[int], nn.Module]


class Chain(nn.Module):
    """Layers in a row, under the name `op`."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.op = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


def relu_conv_norm(
    inputs: int, outputs: int, size: int, stride: int, norm: Norm
) -> Chain:
    """ReLU, dense convolution, batch norm."""
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
    return Chain(nn.ReLU(), conv, norm(outputs))


def _separable(
    channels: int,
    size: int,
    stride: int,
    norm: Norm,
    *,
    dilation: int = 1,
    inplace: bool = False,
) -> list[nn.Module]:
    """ReLU, depthwise convolution, pointwise convolution, batch norm."""
    padding = dilation * (size - 1) // 2
    depthwise = nn.Conv2d(
        channels,
        channels,
        size,
        stride,
        padding,
        dilation,
        groups=channels,
        bias=False,
    )
    pointwise = nn.Conv2d(channels, channels, 1, bias=False)
    return [nn.ReLU(inplace), depthwise, pointwise, norm(channels)]


def sep_conv(channels: int, stride: int, norm: Norm, size: int) -> Chain:
    """Two separable convolutions, the stride in the first."""
    first = _separable(channels, size, stride, norm)
    return Chain(*first, *_separable(channels, size, 1, norm, inplace=True))


def dil_conv(channels: int, stride: int, norm: Norm, size: int) -> Chain:
    """One separable convolution with dilation 2."""
    return Chain(*_separable(channels, size, stride, norm, dilation=2))


class FactorizedReduce(nn.Module):
    """ReLU, two 1x1 convolutions of stride 2 (the second one pixel off), batch norm."""

    def __init__(self, inputs: int, outputs: int, norm: Norm) -> None:
        super().__init__()
        half = outputs // 2
        self.conv_1 = nn.Conv2d(inputs, half, 1, 2, bias=False)
        self.conv_2 = nn.Conv2d(inputs, outputs - half, 1, 2, bias=False)
        self.bn = norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        rows, columns = x.shape[-2] % 2, x.shape[-1] % 2
        shifted = F.pad(x, (0, columns, 0, rows)) if rows or columns else x
        halves = self.conv_1(x), self.conv_2(shifted[:, :, 1:, 1:])
        return self.bn(torch.cat(halves, 1))


def skip_connect(channels: int, stride: int, norm: Norm) -> nn.Module:
    """The identity, or a FactorizedReduce where the stride is 2."""
    if stride == 1:
        return nn.Identity()
    return FactorizedReduce(channels, channels, norm)


def pool(channels: int, stride: int, norm: Norm, kind: str) -> nn.Module:
    """3x3 pool; the average leaves the padding out."""
    if kind == "max":
        return nn.MaxPool2d(3, stride, 1)
    return nn.AvgPool2d(3, stride, 1, count_include_pad=False)


def nor_conv(channels: int, stride: int, norm: Norm, size: int) -> Chain:
    """NAS-Bench-201's ReLU, dense convolution, batch norm."""
    return relu_conv_norm(channels, channels, size, stride, norm)


OPERATIONS: dict[str, Callable[[int, int, Norm], nn.Module]] = {
    "max_pool_3x3": partial(pool, kind="max"),
    "avg_pool_3x3": partial(pool, kind="avg"),
    "skip_connect": skip_connect,
    "sep_conv_3x3": partial(sep_conv, size=3),
    "sep_conv_5x5": partial(sep_conv, size=5),
    "dil_conv_3x3": partial(dil_conv, size=3),
    "dil_conv_5x5": partial(dil_conv, size=5),
    "nor_conv_1x1": partial(nor_conv, size=1),
    "nor_conv_3x3": partial(nor_conv, size=3),
}


class MixedOperation(nn.Module):
    """sum_o weight_o * o(x) over the primitives of one edge.

    `none` adds nothing and is not computed. In a DARTS search a pool is followed by a batch
    norm of the edge's own.
    """

    def __init__(
        self,
        primitives: tuple[str, ...],
        channels: int,
        stride: int,
        norm: Norm,
        pool_norm: bool,
    ) -> None:
        super().__init__()
        self._ops = nn.ModuleList()
        self.stride = stride
        self.live = [o for o, name in enumerate(primitives) if name != "none"]
        for name in primitives:
            operation = (
                nn.Identity()
                if name == "none"
                else OPERATIONS[name](channels, stride, norm)
            )
            if "_pool_" in name and pool_norm:
                operation = nn.Sequential(operation, norm(channels))
            self._ops.append(operation)

    def forward(self, x: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
        if not self.live:
            return torch.zeros_like(x[:, :, :: self.stride, :: self.stride])
        first, *rest = self.live
        mixed = weights[first] * self._ops[first](x)
        for o in rest:
            mixed = mixed + weights[o] * self._ops[o](x)
        return mixed
