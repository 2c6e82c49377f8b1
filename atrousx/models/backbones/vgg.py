"""VGG-16 as a dense feature extractor: output stride 8, atrous rates in place of strides."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from ...nn import AtrousConv2d
from ..width import scaled

Pooling = Literal["3x3", "2x2"]
POOLINGS = ("3x3", "2x2")
# Numbers of filters of the convolutions before each of the five poolings.
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
OUT_CHANNELS = STAGES[-1][-1]
# The last pooling's taps lie one feature before and one after the window's own place. On a map of a
# single feature both taps would be padding. So the last map needs two features, or 16 pixels.
SMALLEST_2X2 = 16


class Fc6(NamedTuple):
    """The first fully connected layer as a convolution: its kernel size, rate and filters."""

    kernel: int
    rate: int
    width: int

    @property
    def padding(self) -> int:
        # This keeps the map's size. It is exact for even kernels too, because their rates are even.
        return self.rate * (self.kernel - 1) // 2

    def scaled(self, width: float) -> Fc6:
        return self._replace(width=scaled(self.width, width))


def fully_convolutional(
    fc6: Fc6, num_classes: int, extra: int = 0, in_channels: int = OUT_CHANNELS
) -> nn.Sequential:
    """Returns VGG's three fully connected layers as convolutions, with torchvision's keys.

    ``extra`` is the number of channels that are added to the last layer's input.
    """
    return nn.Sequential(
        AtrousConv2d(in_channels, fc6.width, fc6.kernel, padding=fc6.padding, dilation=fc6.rate),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        AtrousConv2d(fc6.width, fc6.width, 1),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        AtrousConv2d(fc6.width + extra, num_classes, 1),
    )


class DensePool2x2(nn.Module):
    """A 2x2 max-pooling at stride 1 whose taps lie ``rate`` pixels apart.

    It computes at every pixel what VGG's pooling with stride 2 computes at some of them. The window
    is centred as far as its even size allows: one tap lies ``rate // 2`` pixels before the window's
    own pixel, the other ``rate - rate // 2`` pixels after it. Pixels beyond the border do not
    count.
    """

    def __init__(self, rate: int) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, input: Tensor) -> Tensor:
        before = self.rate // 2
        after = self.rate - before
        padded = F.pad(input, (before, after, before, after), value=float("-inf"))
        return F.max_pool2d(padded, 2, stride=1, dilation=self.rate)

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


class VGG16(nn.Module):
    """The convolutional part of VGG-16 without the strides of its last two poolings.

    A call takes images ``[N, 3, H, W]`` and returns the results of the five poolings. The last
    result, ``[N, 512, H', W']``, has one feature for every 8 image pixels. The ``state_dict`` keys
    are torchvision's, ``features.{0, 2, 5, ..., 28}``.

    Args:
        pooling: "3x3" uses windows as in the released networks. They are centred on the pixels 0,
            8, 16, ... of the image, so that ``H' = ceil((H - 1) / 8) + 1``. "2x2" uses VGG's own
            windows, dilated after the removed stride. Every feature is then one that the original
            network computes on some shift of the image. ``H' = H // 8`` must be at least 2.
        smooth: whether to end with a 3x3 average, as the released networks with a 3x3 fc6 do.
        width: a factor for the channels of all layers.
    """

    def __init__(self, pooling: Pooling = "3x3", smooth: bool = False, width: float = 1.0) -> None:
        super().__init__()
        self.pooling = pooling
        layers: list[nn.Module] = []
        in_channels = 3
        for index, widths in enumerate(STAGES):
            # The fifth stage follows one removed stride, fc6 two.
            rate = 2 if index == 4 else 1
            for channels in (scaled(full, width) for full in widths):
                layers.append(AtrousConv2d(in_channels, channels, 3, padding=rate, dilation=rate))
                layers.append(nn.ReLU(inplace=True))
                in_channels = channels
            layers.append(_pool(pooling, strided=index < 3, rate=rate))
        if smooth:
            layers.append(nn.AvgPool2d(3, stride=1, padding=1))
        self.features = nn.Sequential(*layers)
        for module in self.features:
            if isinstance(module, AtrousConv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, input: Tensor) -> list[Tensor]:
        size = tuple(input.shape[-2:])
        if self.pooling == "2x2" and min(size) < SMALLEST_2X2:
            raise ValueError(
                f"images must have at least {SMALLEST_2X2} pixels in height and width with "
                f"pooling='2x2', got {size}"
            )
        pools, features = [], input
        for layer in self.features:
            features = layer(features)
            if isinstance(layer, (nn.MaxPool2d, DensePool2x2)):
                pools.append(features)
        pools[-1] = features
        return pools


def _pool(pooling: Pooling, strided: bool, rate: int) -> nn.Module:
    if pooling == "3x3":
        return nn.MaxPool2d(3, 2 if strided else 1, padding=1, ceil_mode=strided)
    return nn.MaxPool2d(2, 2) if strided else DensePool2x2(rate)
