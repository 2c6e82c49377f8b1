"""MobileNetV2 as a dense feature extractor."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from ...nn import AtrousConv2d
from ..width import scaled

# The factor of the inner channels, the channels, the number of units, the stride of the first.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
STEM = 32
# The last layer of output stride 4 makes the low-level features.
LOW_LEVEL = 3


def conv_bn_relu6(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    return nn.Sequential(
        AtrousConv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding=kernel_size // 2,
            groups=groups,
            bias=False,
        ),
        nn.BatchNorm2d(out_channels),
        nn.ReLU6(),
    )


class InvertedResidual(nn.Module):
    """A residual unit: 1x1 to more channels, depthwise 3x3 at the rate, 1x1 without ReLU.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the result.
        stride: of the depthwise convolution.
        expansion: factor of the inner channels; 1 leaves the first convolution out.
        pads_input: whether zeros are put around the unit's input, as in the code of VainF, and not
            around that of the depthwise convolution.
    """

    stride_first = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        expansion: int,
        pads_input: bool = False,
    ) -> None:
        super().__init__()
        inner = in_channels * expansion
        widen = [conv_bn_relu6(in_channels, inner, 1)] if expansion != 1 else []
        self.conv = nn.Sequential(
            *widen,
            conv_bn_relu6(inner, inner, 3, groups=inner),
            AtrousConv2d(inner, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.adds = stride == 1 and in_channels == out_channels
        self.pads_input = pads_input
        self.set_geometry(stride, 1)

    @property
    def _depthwise(self) -> AtrousConv2d:
        return cast(AtrousConv2d, cast(nn.Sequential, self.conv[-3])[0])

    @property
    def rate(self) -> int:
        return self._depthwise.dilation[0]

    def set_geometry(self, stride: int, rate: int) -> None:
        """Gives the unit another stride and atrous rate; the parameters do not change."""
        self.stride = stride
        conv = self._depthwise
        conv.stride, conv.dilation = (stride, stride), (rate, rate)
        conv.padding = (0, 0) if self.pads_input else (rate, rate)

    def forward(self, input: Tensor) -> Tensor:
        padded = F.pad(input, [self.rate] * 4) if self.pads_input else input
        result: Tensor = self.conv(padded)
        return input + result if self.adds else result


class MobileNetV2(nn.Module):
    """The convolutional part of MobileNetV2, without its last 1x1 convolution and its classifier.

    A call takes images ``[N, 3, H, W]`` and returns an ordered dictionary: "low" has the 24
    channels at output stride 4, and "out" the 320 of the last unit. It is built at output stride
    32. The ``state_dict`` keys are torchvision's.

    Args:
        width: a factor for the channels of all layers.
        pads_input: as in :class:`InvertedResidual`.

    Source: "MobileNetV2: Inverted Residuals and Linear Bottlenecks", arXiv:1801.04381, table 2.
    """

    stem_stride = 2

    def __init__(self, width: float = 1.0, pads_input: bool = False) -> None:
        super().__init__()
        channels = scaled(STEM, width)
        stem = conv_bn_relu6(3, channels, 3, 2)
        if pads_input:
            cast(AtrousConv2d, stem[0]).padding = (0, 0)
        layers: list[nn.Module] = [stem]
        self._strides = []
        for expansion, wanted, count, first in STAGES:
            for place in range(count):
                stride = 1 if place else first
                out = scaled(wanted, width)
                layers.append(InvertedResidual(channels, out, stride, expansion, pads_input))
                self._strides.append(stride)
                channels = out
        self.features = nn.Sequential(*layers)
        self.low_channels, self.out_channels = scaled(STAGES[1][1], width), channels
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out")

    def units(self) -> Iterator[tuple[InvertedResidual, int]]:
        units = [cast(InvertedResidual, unit) for unit in list(self.features)[1:]]
        return zip(units, self._strides, strict=True)

    def forward(self, input: Tensor) -> OrderedDict[str, Tensor]:
        features, current = OrderedDict[str, Tensor](), input
        for index, layer in enumerate(self.features):
            current = layer(current)
            if index == LOW_LEVEL:
                features["low"] = current
        features["out"] = current
        return features
