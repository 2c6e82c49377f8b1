"""VGG-16 as a dense feature extractor: output stride 8, atrous rates where strides were."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from ..nn import AtrousConv2d

Pooling = Literal["3x3", "2x2"]
POOLINGS = ("3x3", "2x2")
# Filters of the convolutions between the five poolings.
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
OUT_CHANNELS = STAGES[-1][-1]
# The last window's two taps lie a feature before and after its own: alone it would hold nothing.
SMALLEST_2X2 = 16


class Fc6(NamedTuple):
    """The first fully connected layer as a convolution: its taps, their rate, the filters."""

    kernel: int
    rate: int
    width: int

    @property
    def padding(self) -> int:
        # Whole for even kernels too, since their rates are even: the size is kept.
        return self.rate * (self.kernel - 1) // 2


def fully_convolutional(fc6: Fc6, num_classes: int, extra: int = 0) -> nn.Sequential:
    """VGG's three fully connected layers as convolutions, by the keys of torchvision's classifier.

    ``extra`` channels join the last one's input.
    """
    return nn.Sequential(
        AtrousConv2d(OUT_CHANNELS, fc6.width, fc6.kernel, padding=fc6.padding, dilation=fc6.rate),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        AtrousConv2d(fc6.width, fc6.width, 1),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        AtrousConv2d(fc6.width + extra, num_classes, 1),
    )


class DensePool2x2(nn.Module):
    """A 2x2 maximum over pixels ``rate`` apart at stride 1: what pooling by 2 computed, everywhere.

    The window is centred as far as its even size allows: it reads ``rate // 2`` pixels before its
    own and ``rate - rate // 2`` after. Pixels beyond the border do not take part.
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
    """The convolutional part of VGG-16 with the strides of its last two poolings removed.

    Called with images ``[N, 3, H, W]`` it returns the results of the five poolings, of which the
    last, ``[N, 512, H', W']``, has a feature for every 8 image pixels. The ``state_dict`` keys are
    torchvision's, ``features.{0, 2, 5, ..., 28}``.

    Args:
        pooling: "3x3", as in the released networks: windows centred on the pixels 0, 8, 16, ... of
            the image, so that ``H' = ceil((H - 1) / 8) + 1``; or "2x2", VGG's own windows, dilated
            after the removed stride, so that every feature is one that the original network would
            compute on some shift of the image, with ``H' = H // 8``, at least 2.
        smooth: ends with a 3x3 average, as the released networks with a 3x3 fc6 do.
    """

    def __init__(self, pooling: Pooling = "3x3", smooth: bool = False) -> None:
        super().__init__()
        self.pooling = pooling
        layers: list[nn.Module] = []
        in_channels = 3
        for index, widths in enumerate(STAGES):
            # The fifth stage follows one removed stride, fc6 two.
            rate = 2 if index == 4 else 1
            for width in widths:
                layers.append(AtrousConv2d(in_channels, width, 3, padding=rate, dilation=rate))
                layers.append(nn.ReLU(inplace=True))
                in_channels = width
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
