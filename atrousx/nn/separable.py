"""Depthwise separable convolution: each channel by itself, then a 1x1 convolution over channels."""

from __future__ import annotations

from torch import nn

from .atrous_conv2d import AtrousConv2d


class SeparableConv2d(nn.Sequential):
    r"""A depthwise 3x3 convolution at an atrous rate, then a 1x1 convolution, both without bias.

    .. math:: y_k = \sum_c W_{k c}\, a\big(\mathrm{conv}_r(x_c, w_c)\big)

    The result has the input's size divided by ``stride``. :math:`a` is batch normalisation and
    ReLU, normalisation alone, or nothing.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the result.
        stride: of the depthwise convolution.
        rate: atrous rate of the depthwise convolution.
        norm: whether a batch normalisation follows the depthwise convolution.
        relu: whether a ReLU follows that normalisation.

    Shape:
        Input ``[N, C, H, W]``; output ``[N, K, ceil(H / stride), ceil(W / stride)]``.

    Source: "Encoder-Decoder with Atrous Separable Convolution", arXiv:1802.02611, section 3.1.

    Example:
        >>> import torch
        >>> from atrousx.nn import SeparableConv2d
        >>> SeparableConv2d(8, 16, rate=2)(torch.rand(1, 8, 33, 33)).shape
        torch.Size([1, 16, 33, 33])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        rate: int = 1,
        norm: bool = False,
        relu: bool = False,
    ) -> None:
        depthwise = AtrousConv2d(
            in_channels,
            in_channels,
            3,
            stride,
            padding=rate,
            dilation=rate,
            groups=in_channels,
            bias=False,
        )
        between: list[nn.Module] = [nn.BatchNorm2d(in_channels)] if norm else []
        between += [nn.ReLU()] if relu else []
        super().__init__(
            depthwise, *between, AtrousConv2d(in_channels, out_channels, 1, bias=False)
        )

    @property
    def depthwise(self) -> AtrousConv2d:
        layer = self[0]
        assert isinstance(layer, AtrousConv2d)
        return layer
