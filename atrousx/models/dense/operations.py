"""The operations that ``to_dense`` knows: which of them are right at any density of the map, and
how a window spreads its taps over a denser map."""

from __future__ import annotations

import operator
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ...nn.frozen_batch_norm import FrozenBatchNorm2d
from ...ops._check import pair

Window = nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d
# Layers that treat every pixel alike or normalise per channel. They are right at any density.
POINTWISE = (
    nn.modules.batchnorm._BatchNorm,
    FrozenBatchNorm2d,
    nn.modules.dropout._DropoutNd,
    nn.LayerNorm,
    nn.Linear,
    nn.Identity,
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.ELU,
    nn.Mish,
    nn.GELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Hardswish,
    nn.Hardsigmoid,
)
FUNCTIONS = {
    *(operator.add, operator.iadd, operator.mul, operator.imul, torch.add, torch.mul),
    *(torch.cat, torch.relu, torch.sigmoid, torch.permute),
    *(F.relu, F.relu6, F.gelu, F.silu, F.hardswish, F.layer_norm, F.dropout),
}
METHODS = {"add", "add_", "mul", "mul_", "relu", "relu_", "sigmoid", "permute", "contiguous"}
# These are pointwise along the channels.
SPLITS = {torch.split, torch.chunk, "split", "chunk"}
# These layers depend on the mode. They must stay modules, because a trace would fix the mode.
DROPS = ("StochasticDepth", "DropPath")
POOLS = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
POOL_FUNCTIONS = (F.adaptive_avg_pool2d, F.adaptive_max_pool2d)


def refusal(reason: str) -> ValueError:
    return ValueError(f"classifier cannot be made dense: {reason}")


def is_pointwise(layer: nn.Module) -> bool:
    return isinstance(layer, POINTWISE) or type(layer).__name__ in DROPS


def keeps_dimensions(node: fx.Node) -> bool:
    return bool(node.kwargs.get("keepdim") or node.args[2:3] == (True,))


def pools_map(node: fx.Node) -> bool:
    """Whether a node pools height and width and keeps both axes, as squeeze-and-excitation does."""
    return node.target in POOL_FUNCTIONS or _averages_map(node)


def treats_pixels_alike(node: fx.Node) -> bool:
    """Whether a function or method does not depend on the size of its map."""
    allowed = METHODS if node.op == "call_method" else FUNCTIONS
    return node.target in allowed or _along_channels(node)


def _averages_map(node: fx.Node) -> bool:
    if node.target not in (torch.mean, "mean") or not keeps_dimensions(node):
        return False
    dims: Any = (node.args[1:2] or (node.kwargs.get("dim"),))[0]
    return isinstance(dims, (tuple, list)) and sorted(d % 4 for d in dims) == [2, 3]


def _along_channels(node: fx.Node) -> bool:
    """Whether a node splits channels, or takes one part of such a split."""
    if node.target in SPLITS:
        return bool((node.args[2:] or (node.kwargs.get("dim"),))[0] == 1)
    if node.target is not operator.getitem:
        return False
    source, index = node.args
    if isinstance(index, int):
        return isinstance(source, fx.Node) and source.target in SPLITS
    return isinstance(index, tuple) and all(part == slice(None) for part in (index[0], *index[2:]))


class DilatedAvgPool2d(nn.Module):
    """The mean over a window of ``kernel`` pixels that lie ``rate`` apart, at stride 1."""

    def __init__(self, kernel: tuple[int, int], rate: int) -> None:
        super().__init__()
        self.kernel, self.rate = kernel, rate

    def forward(self, input: Tensor) -> Tensor:
        rows, columns = self.kernel
        height = input.shape[-2] - (rows - 1) * self.rate
        width = input.shape[-1] - (columns - 1) * self.rate
        total = torch.zeros_like(input[..., :height, :width])
        for i in range(0, rows * self.rate, self.rate):
            for j in range(0, columns * self.rate, self.rate):
                total = total + input[..., i : i + height, j : j + width]
        return total / (rows * columns)


def spread(
    name: str, layer: Window, factor: int, strided: bool
) -> tuple[nn.Module, tuple[int, int, int, int]]:
    """Returns the window with taps ``factor`` apart and stride 1, and the padding to do before it.

    If a stride is removed, the map keeps its size: an even window gets more padding at the end.
    """
    kernel = pair("kernel_size", cast(Any, layer.kernel_size))
    if layer.padding == "same":
        raise refusal(f"its layer {name} pads 'same'")
    padding = pair("padding", cast(Any, 0 if layer.padding == "valid" else layer.padding))
    dilation = 1 if isinstance(layer, nn.AvgPool2d) else layer.dilation
    rate, _ = pair("dilation", cast(Any, dilation))
    before = [p * factor for p in padding]
    whole = [(k - 1) * rate * factor for k in kernel]
    after = [max(b, w - b) if strided else b for b, w in zip(before, whole, strict=True)]
    if isinstance(layer, nn.Conv2d):
        layer.stride, layer.dilation = (1, 1), (rate * factor, rate * factor)
        layer.padding = (before[0], before[1])
        return layer, (0, after[1] - before[1], 0, after[0] - before[0])
    dilated: nn.Module
    if isinstance(layer, nn.MaxPool2d):
        dilated = nn.MaxPool2d(kernel, 1, 0, rate * factor)
    elif any(padding):
        raise refusal(f"its layer {name} averages padding")
    else:
        dilated = DilatedAvgPool2d(kernel, factor)
    return dilated, (before[1], after[1], before[0], after[0])
