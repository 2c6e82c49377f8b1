"""The aligned Xception-65 and -71 of DeepLab v3+ as dense feature extractors."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, cast

from torch import Tensor, nn

from ...nn import AtrousConv2d
from ..width import scaled

Shortcut = Literal["conv", "sum", "none"]
EPS = 1e-3  # of all batch normalisations
# The second convolution of this unit makes the low-level features.
LOW_LEVEL_UNIT = {"xception65": 1, "xception71": 2}


class UnitForm(NamedTuple):
    """Channels of a unit's three convolutions, the stride of the last, and the kind of shortcut."""

    channels: tuple[int, int, int]
    stride: int = 1
    shortcut: Shortcut = "conv"


def _same(channels: int, stride: int = 1) -> UnitForm:
    return UnitForm((channels,) * 3, stride)


MIDDLE = [UnitForm((728,) * 3, 1, "sum")] * 16
EXIT = [UnitForm((728, 1024, 1024), 2), UnitForm((1536, 1536, 2048), 1, "none")]
FORMS = {
    "xception65": [_same(128, 2), _same(256, 2), _same(728, 2), *MIDDLE, *EXIT],
    "xception71": [
        *(_same(128, 2), _same(256), _same(256, 2), _same(728), _same(728, 2)),
        *MIDDLE,
        *EXIT,
    ],
}


class SeparableUnit(nn.Module):
    """A depthwise 3x3 and a 1x1 convolution; normalisation follows each, and so may a ReLU."""

    def __init__(self, in_channels: int, out_channels: int, relu: bool) -> None:
        super().__init__()
        self.conv_dw = AtrousConv2d(
            in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False
        )
        self.bn_dw = nn.BatchNorm2d(in_channels, eps=EPS)
        self.act_dw = nn.ReLU() if relu else nn.Identity()
        self.conv_pw = AtrousConv2d(in_channels, out_channels, 1, bias=False)
        self.bn_pw = nn.BatchNorm2d(out_channels, eps=EPS)
        self.act_pw = nn.ReLU() if relu else nn.Identity()

    def forward(self, input: Tensor) -> Tensor:
        spread = self.act_dw(self.bn_dw(self.conv_dw(input)))
        result: Tensor = self.act_pw(self.bn_pw(self.conv_pw(spread)))
        return result


class XceptionUnit(nn.Module):
    """Three separable convolutions, of which the last may have a stride, beside a shortcut.

    A ReLU precedes each convolution. Without a shortcut, ReLUs lie inside the convolutions instead.
    """

    stride_first = False

    def __init__(self, in_channels: int, form: UnitForm) -> None:
        super().__init__()
        inner = form.shortcut == "none"
        self.stack = nn.Sequential()
        channels = in_channels
        for number, out_channels in enumerate(form.channels, start=1):
            if not inner:
                # The first must not change the shortcut's input.
                self.stack.add_module(f"act{number}", nn.ReLU(inplace=number > 1))
            unit = SeparableUnit(channels, out_channels, relu=inner)
            self.stack.add_module(f"conv{number}", unit)
            channels = out_channels
        self.shortcut = (
            ConvBN(in_channels, channels, 1, relu=False) if form.shortcut == "conv" else None
        )
        self.adds = not inner
        self.set_geometry(form.stride, 1)

    @property
    def _separable(self) -> list[SeparableUnit]:
        return [layer for layer in self.stack if isinstance(layer, SeparableUnit)]

    @property
    def rate(self) -> int:
        return self._separable[0].conv_dw.dilation[0]

    def set_geometry(self, stride: int, rate: int) -> None:
        """Gives the unit another stride and atrous rate; the parameters do not change."""
        self.stride = stride
        for unit in self._separable:
            unit.conv_dw.padding = unit.conv_dw.dilation = (rate, rate)
        self._separable[-1].conv_dw.stride = (stride, stride)
        if self.shortcut is not None:
            self.shortcut.conv.stride = (stride, stride)

    def forward(self, input: Tensor) -> Tensor:
        result: Tensor = self.stack(input)
        if not self.adds:
            return result
        return result + (input if self.shortcut is None else self.shortcut(input))


class LowLevelUnit(XceptionUnit):
    """A unit that also returns the result of its second convolution, which comes first."""

    def __init__(self, in_channels: int, form: UnitForm) -> None:
        super().__init__(in_channels, form)
        self.stack.act3 = nn.ReLU()  # must not change the low-level features

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        low = result = input
        for name, layer in self.stack.named_children():
            result = layer(result)
            if name == "conv2":
                low = result
        return low, result + (input if self.shortcut is None else self.shortcut(input))


class ConvBN(nn.Module):
    """A convolution and a normalisation, and a ReLU."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, *, relu: bool
    ) -> None:
        super().__init__()
        self.conv = AtrousConv2d(
            in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False
        )
        self.bn = nn.BatchNorm2d(out_channels, eps=EPS)
        self.act = nn.ReLU() if relu else nn.Identity()

    def forward(self, input: Tensor) -> Tensor:
        result: Tensor = self.act(self.bn(self.conv(input)))
        return result


class Xception(nn.Module):
    """The convolutional part of an aligned Xception.

    A call takes images ``[N, 3, H, W]`` and returns an ordered dictionary: "low" has the 256
    channels of the low-level features, at output stride 4, and "out" the 2048 of the last unit. It
    is built at output stride 32. The ``state_dict`` keys are those of timm's ``xception65`` and
    ``xception71``.

    Args:
        name: "xception65" or "xception71".
        width: a factor for the channels of all layers.

    Source: arXiv:1802.02611 section 3.2 and figure 4; for details the authors' TensorFlow code.
    """

    stem_stride = 2

    def __init__(self, name: str, width: float = 1.0) -> None:
        super().__init__()
        first, second = scaled(32, width), scaled(64, width)
        self.stem = nn.Sequential(
            ConvBN(3, first, 3, 2, relu=True), ConvBN(first, second, 3, relu=True)
        )
        channels, units = second, []
        self.low_unit = LOW_LEVEL_UNIT[name]
        for index, form in enumerate(FORMS[name]):
            narrow = cast("tuple[int, int, int]", tuple(scaled(c, width) for c in form.channels))
            kind = LowLevelUnit if index == self.low_unit else XceptionUnit
            units.append(kind(channels, form._replace(channels=narrow)))
            channels = narrow[-1]
        self.blocks = nn.Sequential(*units)
        self.low_channels = scaled(FORMS[name][self.low_unit].channels[1], width)
        self.out_channels = channels
        self._strides = [form.stride for form in FORMS[name]]
        _initialise(self)

    def units(self) -> Iterator[tuple[XceptionUnit, int]]:
        units: Sequence[XceptionUnit] = [cast(XceptionUnit, unit) for unit in self.blocks]
        return zip(units, self._strides, strict=True)

    def forward(self, input: Tensor) -> OrderedDict[str, Tensor]:
        current: Tensor = self.stem(input)
        features: OrderedDict[str, Tensor] = OrderedDict()
        for index, unit in enumerate(self.blocks):
            if index == self.low_unit:
                features["low"], current = unit(current)
            else:
                current = unit(current)
        features["out"] = current
        return features


def _initialise(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
