"""ResNet-50 and ResNet-101 as dense feature extractors: atrous rates in place of strides."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ...nn import AtrousConv2d
from ..width import scaled
from .stage_checkpoint import recomputed

UNITS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
STAGE_WIDTHS = (64, 128, 256, 512)
EXPANSION = 4
STEM_STRIDE = 4


class Stage(NamedTuple):
    """The stride of a stage's first unit, and the atrous rate of each unit of the stage."""

    stride: int
    rates: tuple[int, ...]


def plan_stages(
    units: Sequence[int],
    output_stride: int,
    multi_grid: Sequence[int] | None = None,
    first_unit_keeps_rate: bool = False,
) -> list[Stage]:
    """Returns the strides and rates of the stages of a ResNet with the given output stride.

    The stages have strides until ``output_stride`` is reached. From there on each stage doubles the
    rate instead. ``multi_grid`` multiplies the rates of the units from the fourth stage on. With
    ``first_unit_keeps_rate`` the first unit of a stage has the rate of the stage before, as in
    torchvision.

    >>> plan_stages((3, 4, 6, 3), 16, multi_grid=(1, 2, 4))[-1]
    Stage(stride=1, rates=(2, 4, 8))
    """
    if multi_grid is not None and (len(multi_grid) != units[-1] or min(multi_grid) < 1):
        raise ValueError(
            f"multi_grid must hold a positive rate for each of the last stage's {units[-1]} units, "
            f"got {tuple(multi_grid)}"
        )
    stages = []
    reached, rate = STEM_STRIDE, 1
    for index, count in enumerate(units):
        wanted = 1 if index == 0 else 2
        stride = wanted if reached * wanted <= output_stride else 1
        first_rate = rate if first_unit_keeps_rate else rate * wanted // stride
        rate = rate * wanted // stride
        reached *= stride
        stages.append(Stage(stride, (first_rate, *[rate] * (count - 1))))
    if multi_grid is not None:
        for index in range(len(STAGE_WIDTHS) - 1, len(stages)):
            plain = stages[index]
            scaled = tuple(r * grid for r, grid in zip(plain.rates, multi_grid, strict=True))
            stages[index] = Stage(plain.stride, scaled)
    return stages


class Bottleneck(nn.Module):
    """A residual unit: 1x1 to ``width`` channels, 3x3 at the rate, 1x1 to 4 ``width`` channels.

    The 3x3 convolution has the stride, as torchvision's published weights expect. With
    ``stride_first`` the first 1x1 convolution has it, as in the original ResNet. The shortcut has a
    projection (``downsample``) if the channels change. Otherwise the shortcut is only subsampled.
    So a unit has the same parameters at every stride.
    """

    def __init__(
        self, in_channels: int, width: int, stride: int, rate: int, stride_first: bool = False
    ) -> None:
        super().__init__()
        out_channels = EXPANSION * width
        self.stride_first = stride_first
        self.conv1 = AtrousConv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = AtrousConv2d(width, width, 3, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = AtrousConv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = (
            nn.Sequential(
                AtrousConv2d(in_channels, out_channels, 1, bias=False),
                nn.BatchNorm2d(out_channels),
            )
            if in_channels != out_channels
            else None
        )
        self.set_geometry(stride, rate)

    @property
    def rate(self) -> int:
        return self.conv2.dilation[0]

    def set_geometry(self, stride: int, rate: int) -> None:
        """Gives the unit another stride and atrous rate; the parameters do not change."""
        self.stride = stride
        self.conv2.padding = self.conv2.dilation = (rate, rate)
        (self.conv1 if self.stride_first else self.conv2).stride = (stride, stride)
        if self.downsample is not None:
            cast(AtrousConv2d, self.downsample[0]).stride = (stride, stride)

    def forward(self, input: Tensor) -> Tensor:
        if self.downsample is not None:
            shortcut = self.downsample(input)
        else:
            shortcut = input[..., :: self.stride, :: self.stride] if self.stride > 1 else input
        features = self.relu(self.bn1(self.conv1(input)))
        features = self.relu(self.bn2(self.conv2(features)))
        # The sum may overwrite the normalised map: for its gradient normalisation keeps its input.
        features = self.bn3(self.conv3(features)).add_(shortcut)
        result: Tensor = self.relu(features)
        return result


class ResNet(nn.Module):
    """The convolutional part of a ResNet, without its classifier.

    A call takes images ``[N, 3, H, W]`` and returns an ordered dictionary. "out" has the 2048
    channels of the last stage. With ``aux``, "aux" comes before it and has the 1024 channels of the
    third stage. With ``low``, "low" comes first and has the 256 channels of the first stage. The
    ``state_dict`` keys are torchvision's. Stages after the fourth have the keys ``layer5`` and so
    on, and the fourth stage's widths.

    Args:
        stages: strides and rates, as :func:`plan_stages` returns them.
        aux: whether to return the third stage's result too.
        caffe: whether to use the original network's form: strides on the first 1x1 convolution of
            a unit, and a max-pooling that rounds sizes up.
        low: whether to return the first stage's result too.
        deep_stem: whether three 3x3 convolutions replace the first 7x7 one, as in ResNet-C
            (arXiv:1812.01187).
        width: a factor for the channels of all layers.
    """

    stem_stride = STEM_STRIDE

    def __init__(
        self,
        stages: Sequence[Stage],
        aux: bool = False,
        caffe: bool = False,
        *,
        low: bool = False,
        deep_stem: bool = False,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        self.aux, self.low = aux, low
        self.recompute = False
        widths = [scaled(channels, width) for channels in STAGE_WIDTHS]
        channels = widths[0]
        self.conv1: nn.Module = (
            _deep_stem(channels)
            if deep_stem
            else AtrousConv2d(3, channels, 7, stride=2, padding=3, bias=False)
        )
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=caffe)
        self.stage_names = [f"layer{index}" for index in range(1, len(stages) + 1)]
        for index, stage in enumerate(stages):
            inner = widths[min(index, len(widths) - 1)]
            units = []
            for place, rate in enumerate(stage.rates):
                stride = 1 if place else stage.stride
                units.append(Bottleneck(channels, inner, stride, rate, caffe))
                channels = EXPANSION * inner
            self.add_module(self.stage_names[index], nn.Sequential(*units))
        self.low_channels = EXPANSION * widths[0]
        self.aux_channels = EXPANSION * widths[2]
        self.out_channels = channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stages(self) -> list[nn.Sequential]:
        return [cast(nn.Sequential, getattr(self, name)) for name in self.stage_names]

    def units(self) -> Iterator[tuple[Bottleneck, int]]:
        for index, stage in enumerate(self.stages()):
            for place, unit in enumerate(stage):
                yield cast(Bottleneck, unit), 2 if index and place == 0 else 1

    def forward(self, input: Tensor) -> OrderedDict[str, Tensor]:
        current = self.maxpool(self.relu(self.bn1(self.conv1(input))))
        features: OrderedDict[str, Tensor] = OrderedDict()
        recompute = self.recompute and self.training and not torch.compiler.is_compiling()
        for name in self.stage_names:
            stage = getattr(self, name)
            current = recomputed(stage, current) if recompute else stage(current)
            if self.low and name == "layer1":
                features["low"] = current
            if self.aux and name == "layer3":
                features["aux"] = current
        features["out"] = current
        return features


def _deep_stem(channels: int) -> nn.Sequential:
    """Returns three 3x3 convolutions; the normalisation after the last is the ResNet's ``bn1``."""
    half = channels // 2
    layers: list[nn.Module] = []
    for before, stride in ((3, 2), (half, 1)):
        layers.append(AtrousConv2d(before, half, 3, stride=stride, padding=1, bias=False))
        layers += [nn.BatchNorm2d(half), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, AtrousConv2d(half, channels, 3, padding=1, bias=False))
