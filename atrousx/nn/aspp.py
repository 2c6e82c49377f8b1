"""Atrous spatial pyramid pooling (ASPP) as in DeepLab v3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops import upsample_bilinear2d
from .atrous_conv2d import AtrousConv2d, hooked
from .separable import SeparableConv2d


def conv_bn_relu(
    in_channels: int, out_channels: int, kernel_size: int = 1, rate: int = 1
) -> list[nn.Module]:
    """Returns a convolution that keeps the map's size, a batch normalisation and a ReLU."""
    padding = rate * (kernel_size // 2)
    return [
        AtrousConv2d(
            in_channels, out_channels, kernel_size, padding=padding, dilation=rate, bias=False
        ),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    ]


def separable_bn_relu(
    in_channels: int, out_channels: int, rate: int = 1, *, depthwise_norm: bool = False
) -> list[nn.Module]:
    """Returns the same with a separable 3x3 convolution.

    With ``depthwise_norm`` normalisation and ReLU follow its depthwise convolution, too.
    """
    conv = SeparableConv2d(
        in_channels, out_channels, rate=rate, norm=depthwise_norm, relu=depthwise_norm
    )
    return [conv, nn.BatchNorm2d(out_channels), nn.ReLU()]


class PooledBatchNorm2d(nn.BatchNorm2d):
    """A batch normalisation that accepts a single value per channel in training.

    It normalises such a batch by the running statistics. One image that was pooled to one pixel is
    such a batch. It has no variance, so ``nn.BatchNorm2d`` raises an error in training.
    """

    def forward(self, input: Tensor) -> Tensor:
        if self.training and input.numel() == input.shape[1]:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(input)


class ImagePooling(nn.Sequential):
    """The whole-image branch: mean over the map, 1x1 convolution, resampling to the map's size."""

    # ``models.to_torch`` replaces this function by PyTorch's.
    resample = staticmethod(upsample_bilinear2d)

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), *conv_bn_relu(in_channels, out_channels))
        self[2] = PooledBatchNorm2d(out_channels)

    def pooled(self, input: Tensor) -> Tensor:
        """Returns the branch's values before they are spread over the map, ``[N, K, 1, 1]``."""
        for layer in self:
            input = layer(input)
        return input

    def forward(self, input: Tensor) -> Tensor:
        pooled = self.pooled(input)
        resized = self.resample(pooled, size=input.shape[-2:])
        # Autocast may resample in float32. Normalising a 1x1 map loses channels_last. Without this
        # line the concatenation would spread both to all branches.
        channels_last = input.is_contiguous(memory_format=torch.channels_last)
        memory_format = torch.channels_last if channels_last else torch.preserve_format
        return resized.to(pooled.dtype, memory_format=memory_format)


def split_projection(weight: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Splits a projection's filters: the first ``width`` channels, and those of the pooled branch.

    The projection of a concatenation is the sum of the projections of its parts. The pooled branch
    has the same value at every pixel, and so has its projection. So the projection is computed once
    for each image and added to each pixel. The pooled branch need not be spread over the map,
    stored and multiplied there.
    """
    return weight[:, :width], weight[:, width:]


class ASPP(nn.Module):
    r"""Atrous spatial pyramid pooling: parallel branches look at every pixel at several scales.

    .. math::
        y = P\big(\big[\,B_1(x),\; B_{3, r_1}(x),\; \ldots,\; B_{3, r_n}(x),\;
        U(B_1(\bar x))\,\big]\big)

    where :math:`B_1` is a 1x1 convolution, :math:`B_{3, r}` a 3x3 convolution at atrous rate
    :math:`r`, and :math:`P` another 1x1 convolution. Batch normalisation and ReLU follow each of
    them. :math:`\bar x` is the mean over the map, :math:`U` the bilinear resampling back to the
    map's size, and :math:`[\ldots]` the concatenation.

    The ``state_dict`` has the same keys as torchvision's ``ASPP``: ``convs.{0..n}.{0,1}`` for the
    branches, ``convs.{n+1}.{1,2}`` for the image pooling, and ``project.{0,1}``.

    Args:
        in_channels: channels of the input; 2048 after the last stage of a ResNet.
        atrous_rates: rates of the 3x3 branches, in input pixels. The paper uses (6, 12, 18) at an
            output stride of 16, and twice these rates at 8.
        out_channels: channels of each branch and of the result.
        dropout: probability that a value of the result is set to zero in training. torchvision
            uses 0.5, the paper no dropout.
        separable: whether the 3x3 branches are depthwise separable, as in DeepLab v3+.
        depthwise_norm: whether normalisation and ReLU also follow their depthwise convolutions.
        project_kernel: side of the filters of :math:`P`; mmsegmentation uses 3.

    Shape:
        Input ``[N, C, H, W]``; output ``[N, out_channels, H, W]``. In training the pooled branch is
        normalised over the batch. For a single image it uses the running statistics instead.

    Raises:
        ValueError: ``atrous_rates`` is empty, or a rate is not positive.

    Source: "Rethinking Atrous Convolution for Semantic Image Segmentation", arXiv:1706.05587,
    section 3.3.

    Example:
        >>> import torch, atrousx
        >>> atrousx.ASPP(64, (6, 12, 18)).eval()(torch.rand(1, 64, 33, 33)).shape
        torch.Size([1, 256, 33, 33])
    """

    def __init__(
        self,
        in_channels: int,
        atrous_rates: Sequence[int] = (6, 12, 18),
        out_channels: int = 256,
        *,
        dropout: float = 0.5,
        separable: bool = False,
        depthwise_norm: bool = False,
        project_kernel: Literal[1, 3] = 1,
    ) -> None:
        super().__init__()
        rates = tuple(atrous_rates)
        _check_rates(rates)
        if project_kernel not in (1, 3):
            raise ValueError(f"project_kernel must be 1 or 3, got {project_kernel!r}")

        def branch(rate: int) -> list[nn.Module]:
            if separable:
                return separable_bn_relu(
                    in_channels, out_channels, rate, depthwise_norm=depthwise_norm
                )
            return conv_bn_relu(in_channels, out_channels, 3, rate)

        self.convs = nn.ModuleList(
            [
                nn.Sequential(*conv_bn_relu(in_channels, out_channels)),
                *(nn.Sequential(*branch(rate)) for rate in rates),
                ImagePooling(in_channels, out_channels),
            ]
        )
        self.project = nn.Sequential(
            *conv_bn_relu(len(self.convs) * out_channels, out_channels, project_kernel),
            nn.Dropout(dropout),
        )

    def _atrous_layers(self) -> list[nn.Conv2d]:
        firsts = [cast(nn.Sequential, branch)[0] for branch in list(self.convs)[1:-1]]
        layers = [conv.depthwise if isinstance(conv, SeparableConv2d) else conv for conv in firsts]
        return [cast(nn.Conv2d, layer) for layer in layers]

    @property
    def atrous_rates(self) -> tuple[int, ...]:
        """The rates of the 3x3 branches; assigning others keeps the weights."""
        return tuple(layer.dilation[0] for layer in self._atrous_layers())

    @atrous_rates.setter
    def atrous_rates(self, rates: Sequence[int]) -> None:
        _check_rates(rates)
        for layer, rate in zip(self._atrous_layers(), rates, strict=True):
            layer.padding = layer.dilation = (rate, rate)

    def forward(self, input: Tensor) -> Tensor:
        pooling, conv = self.convs[-1], self.project[0]
        if (
            not self.training
            and isinstance(pooling, ImagePooling)
            and type(conv) in (nn.Conv2d, AtrousConv2d)
            and conv.kernel_size == (1, 1)
            and not hooked(pooling, conv, self.project)
        ):
            return self._evaluated(input, pooling, cast(nn.Conv2d, conv))
        result: Tensor = self.project(torch.cat([branch(input) for branch in self.convs], dim=1))
        return result

    def _evaluated(self, input: Tensor, pooling: ImagePooling, conv: nn.Conv2d) -> Tensor:
        wide = torch.cat([branch(input) for branch in list(self.convs)[:-1]], dim=1)
        weight, pooled_weight = split_projection(conv.weight, wide.shape[1])
        result: Tensor = conv._conv_forward(wide, weight, conv.bias)
        result = result + conv._conv_forward(pooling.pooled(input), pooled_weight, None)
        for layer in list(self.project)[1:]:
            result = layer(result)
        return result


def _check_rates(rates: Sequence[int]) -> None:
    if not rates or any(rate < 1 for rate in rates):
        raise ValueError(f"atrous_rates must be positive, at least one, got {tuple(rates)!r}")
