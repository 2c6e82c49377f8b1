"""ResNet-50 and ResNet-101 as dense feature extractors: atrous rates in place of strides."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from ..nn import AtrousConv2d

UNITS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
STAGE_WIDTHS = (64, 128, 256, 512)
EXPANSION = 4
STEM_STRIDE = 4


class Stage(NamedTuple):
    """A stage's stride, which its first unit carries, and the atrous rate of each of its units."""

    stride: int
    rates: tuple[int, ...]


def plan_stages(
    units: Sequence[int],
    output_stride: int,
    multi_grid: Sequence[int] | None = None,
    first_unit_keeps_rate: bool = False,
) -> list[Stage]:
    """Strides until ``output_stride`` is reached; from there on each doubles the rate instead.

    ``multi_grid`` multiplies the rates of the last stage's units. With ``first_unit_keeps_rate``
    the first unit of a stage has the rate of the stage before, as in torchvision.

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
        last = stages[-1]
        scaled = tuple(r * grid for r, grid in zip(last.rates, multi_grid, strict=True))
        stages[-1] = Stage(last.stride, scaled)
    return stages


class Bottleneck(nn.Module):
    """A residual unit: 1x1 to ``width`` channels, 3x3 at the stride and rate, 1x1 to 4 ``width``.

    The stride sits on the 3x3, where the weights published with torchvision expect it. A
    projection on the shortcut (``downsample``) appears where the shape changes.
    """

    def __init__(self, in_channels: int, width: int, stride: int, rate: int) -> None:
        super().__init__()
        out_channels = EXPANSION * width
        self.conv1 = AtrousConv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = AtrousConv2d(width, width, 3, stride, padding=rate, dilation=rate, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = AtrousConv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = (
            nn.Sequential(
                AtrousConv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )
            if stride != 1 or in_channels != out_channels
            else None
        )

    def forward(self, input: Tensor) -> Tensor:
        shortcut = input if self.downsample is None else self.downsample(input)
        features = self.relu(self.bn1(self.conv1(input)))
        features = self.relu(self.bn2(self.conv2(features)))
        # The sum takes the normalised map's memory: normalisation keeps its input, not its output.
        features = self.bn3(self.conv3(features)).add_(shortcut)
        result: Tensor = self.relu(features)
        return result


class ResNet(nn.Module):
    """The convolutional part of a ResNet, without its classifier.

    Called with images ``[N, 3, H, W]`` it returns an ordered dictionary: "out", the last stage's
    2048 channels, and with ``aux`` before it "aux", the 1024 channels of the stage before. The
    ``state_dict`` keys are torchvision's.
    """

    def __init__(self, stages: Sequence[Stage], aux: bool = False) -> None:
        super().__init__()
        self.aux = aux
        channels = STAGE_WIDTHS[0]
        self.conv1 = AtrousConv2d(3, channels, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        layers = []
        for width, stage in zip(STAGE_WIDTHS, stages, strict=True):
            units = []
            for index, rate in enumerate(stage.rates):
                units.append(Bottleneck(channels, width, 1 if index else stage.stride, rate))
                channels = EXPANSION * width
            layers.append(nn.Sequential(*units))
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, input: Tensor) -> OrderedDict[str, Tensor]:
        stem = self.maxpool(self.relu(self.bn1(self.conv1(input))))
        third = self.layer3(self.layer2(self.layer1(stem)))
        features: OrderedDict[str, Tensor] = OrderedDict()
        if self.aux:
            features["aux"] = third
        features["out"] = self.layer4(third)
        return features
