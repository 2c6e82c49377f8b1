"""The public versions of DeepLab v3 and v3+: what differs between them, and their common parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import nn

from ..nn import ASPP, AtrousConv2d
from ..nn.aspp import conv_bn_relu, separable_bn_relu
from .backbones.geometry import apply_plan, plan_output_stride
from .backbones.mobilenet_v2 import MobileNetV2
from .backbones.resnet import UNITS, ResNet, Stage, plan_stages
from .backbones.xception import FORMS, Xception
from .width import scaled

PAPER_OUTPUT_STRIDE = 16
PAPER_BN_MOMENTUM = 3e-4
# The output stride after the stem. Each block after the first can double it.
FIRST_OUTPUT_STRIDE = 4


@dataclass(frozen=True)
class Form:
    """What differs between public versions.

    Args:
        output_stride: the default.
        multi_grid: rates of a ResNet's last units. None is torchvision's plan, in which the first
            unit of a dilated stage keeps the rate of the stage before.
        deep_stem: whether a ResNet begins with three 3x3 convolutions.
        rates: of ASPP at output stride 16; twice these at 8.
        fixed_rates: whether ASPP has these rates at every output stride.
        channels: of ASPP's result and of all later layers.
        low_channels: of the projected low-level features.
        separable: whether the 3x3 convolutions after the backbone are depthwise separable.
        depthwise_norm: whether normalisation and ReLU follow their depthwise convolutions.
        project_kernel: side of the filters of ASPP's projection.
        refines: whether a separable convolution follows ASPP in v3+.
        convolutions: number of 3x3 convolutions before the logits.
        low_first: whether low-level features come first in the concatenation.
        aspp_dropout: probability of dropout after ASPP.
        last_dropout: probability of dropout of whole channels before the logits.
        align_corners: whether resampling aligns the corners.
        bn_momentum: share of a batch in the running statistics.
    """

    output_stride: int = PAPER_OUTPUT_STRIDE
    multi_grid: tuple[int, ...] | None = None
    deep_stem: bool = False
    rates: tuple[int, ...] = (6, 12, 18)
    fixed_rates: bool = False
    channels: int = 256
    low_channels: int = 48
    separable: bool = False
    depthwise_norm: bool = False
    project_kernel: Literal[1, 3] = 1
    refines: bool = False
    convolutions: int = 1
    low_first: bool = False
    aspp_dropout: float = 0.1
    last_dropout: float = 0.0
    align_corners: bool = False
    bn_momentum: float = 0.1

    def replaced(self, width: float, **changes: Any) -> Form:
        """Returns the form of a narrow network, with those changes that are not None."""
        given = {name: value for name, value in changes.items() if value is not None}
        given |= {name: scaled(getattr(self, name), width) for name in CHANNELS}
        return replace(self, **given)

    def aspp(self, in_channels: int, output_stride: int) -> ASPP:
        factor = 1 if self.fixed_rates else PAPER_OUTPUT_STRIDE / output_stride
        return ASPP(
            in_channels,
            [int(rate * factor) for rate in self.rates],
            self.channels,
            dropout=self.aspp_dropout,
            separable=self.separable,
            depthwise_norm=self.depthwise_norm,
            project_kernel=self.project_kernel,
        )

    def conv(self, in_channels: int) -> list[nn.Module]:
        """Returns a 3x3 convolution with its normalisation and ReLU."""
        if self.separable:
            norm = self.depthwise_norm
            return separable_bn_relu(in_channels, self.channels, depthwise_norm=norm)
        return conv_bn_relu(in_channels, self.channels, 3)

    def last_layers(self, in_channels: int, num_classes: int) -> list[nn.Module]:
        """Returns the 3x3 convolutions and the one that makes the logits."""
        layers: list[nn.Module] = []
        channels = in_channels
        for _ in range(self.convolutions):
            layers += self.conv(channels)
            channels = self.channels
        if self.last_dropout:
            layers.append(nn.Dropout2d(self.last_dropout))
        return [*layers, AtrousConv2d(channels, num_classes, 1)]

    def stages(self, units: Sequence[int], output_stride: int) -> list[Stage]:
        """Returns the stages of a ResNet with these numbers of units."""
        keeps_rate = self.multi_grid is None
        return plan_stages(units, output_stride, self.multi_grid, keeps_rate)

    def set_momentum(self, model: nn.Module) -> None:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = self.bn_momentum


CHANNELS = ("channels", "low_channels")
_SMP = Form(
    multi_grid=(1, 1, 1),
    rates=(12, 24, 36),
    fixed_rates=True,
    aspp_dropout=0.5,
    align_corners=True,
)
_MMSEG = Form(
    output_stride=8,
    deep_stem=True,
    channels=512,
    project_kernel=3,
    aspp_dropout=0.0,
    last_dropout=0.1,
)
V3 = {
    "paper": Form(
        multi_grid=(1, 2, 4), convolutions=0, aspp_dropout=0.0, bn_momentum=PAPER_BN_MOMENTUM
    ),
    "torchvision": Form(output_stride=8, aspp_dropout=0.5),
    "vainf": Form(),
    "smp": replace(_SMP, output_stride=8),
    "mmseg": replace(_MMSEG, convolutions=0),
}
V3PLUS = {
    "paper": Form(
        multi_grid=(1, 2, 4),
        separable=True,
        depthwise_norm=True,
        convolutions=2,
        bn_momentum=PAPER_BN_MOMENTUM,
    ),
    "vainf": Form(low_first=True),
    "smp": replace(_SMP, separable=True, refines=True),
    "mmseg": replace(_MMSEG, separable=True, depthwise_norm=True, convolutions=2),
}


Net = ResNet | Xception | MobileNetV2
# Layouts without some of the backbones. VainF's Xception is another one.
BACKBONES_OF = {
    "torchvision": tuple(UNITS),
    "vainf": (*UNITS, "mobilenet_v2"),
    "smp": tuple(UNITS),
    "mmseg": tuple(UNITS),
}


def build_backbone(
    name: str,
    layout: str,
    form: Form,
    output_stride: int,
    *,
    blocks: int = 4,
    low: bool = False,
    aux: bool = False,
    width: float = 1.0,
) -> Net:
    """Returns a backbone with the output stride; ``blocks`` counts a ResNet's stages."""
    if name in UNITS:
        units = UNITS[name] + UNITS[name][-1:] * (blocks - 4)
        stages = form.stages(units, output_stride)
        return ResNet(stages, aux, low=low, deep_stem=form.deep_stem, width=width)
    pads_input = layout == "vainf"
    net = Xception(name, width) if name in FORMS else MobileNetV2(width, pads_input)
    apply_plan(plan_output_stride(net, output_stride)[0])
    return net


def check_backbone(backbone: str, layout: str, multi_grid: Sequence[int] | None, aux: bool) -> None:
    """Raises ValueError for options that do not fit together."""
    allowed = BACKBONES_OF.get(layout)
    if allowed is not None and backbone not in allowed:
        raise ValueError(
            f"backbone must be one of {', '.join(allowed)} with layout={layout!r}, got {backbone!r}"
        )
    if multi_grid is not None and (layout != "paper" or backbone not in UNITS):
        raise ValueError("multi_grid belongs to layout='paper' with a ResNet")
    if multi_grid is not None and len(multi_grid) == 0:
        raise ValueError("multi_grid must hold a positive rate for each of a block's 3 units")
    if aux and backbone not in UNITS:
        raise ValueError(f"aux needs a ResNet, got backbone={backbone!r}")


def check_output_stride(output_stride: int, last_block: int) -> None:
    """Raises ValueError unless the blocks can reach the output stride, a power of 2 from 8 on."""
    allowed = [FIRST_OUTPUT_STRIDE * 2**block for block in range(1, last_block)]
    if output_stride not in allowed:
        raise ValueError(
            f"output_stride must be one of {', '.join(map(str, allowed))} "
            f"with {last_block} blocks, got {output_stride!r}"
        )


class FCNHead(nn.Sequential):
    """The auxiliary classifier: a 3x3 convolution to a quarter of the channels, a 1x1 to logits."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        channels = in_channels // 4
        super().__init__(
            AtrousConv2d(in_channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Dropout(0.1),
            AtrousConv2d(channels, num_classes, 1),
        )
