"""DeepLab v1: VGG-16 with its fully connected layers made atrous convolutions, then a CRF."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..nn import AtrousConv2d, DenseCRF
from ._check import check_choice, check_classes
from .preprocess import Preprocess
from .segmenter import Segmenter
from .vgg import POOLINGS, VGG16, Fc6, Pooling, fully_convolutional

MULTI_SCALE_CHANNELS = 128
# The strides that bring the image and the first four poolings' results to the features' size.
MULTI_SCALE_INPUTS = ((3, 8), (64, 4), (128, 2), (256, 1), (512, 1))


FC6 = {
    "large_fov": Fc6(3, 12, 1024),
    "7x7_r4": Fc6(7, 4, 4096),
    "4x4_r4": Fc6(4, 4, 4096),
    "4x4_r8": Fc6(4, 8, 4096),
}
Fc6Name = Literal["large_fov", "7x7_r4", "4x4_r4", "4x4_r8"]


class MultiScaleFeatures(nn.Module):
    """The image and each of the first four poolings through a 3x3 and a 1x1 convolution."""

    def __init__(self) -> None:
        super().__init__()
        width = MULTI_SCALE_CHANNELS
        self.branches = nn.ModuleList(
            nn.Sequential(
                AtrousConv2d(channels, width, 3, stride, padding=1),
                nn.ReLU(inplace=True),
                nn.Dropout(0.5),
                AtrousConv2d(width, width, 1),
                nn.ReLU(inplace=True),
                nn.Dropout(0.5),
            )
            for channels, stride in MULTI_SCALE_INPUTS
        )

    def forward(self, sources: list[Tensor], height: int, width: int) -> list[Tensor]:
        results = []
        for source, branch, (_, stride) in zip(
            sources, self.branches, MULTI_SCALE_INPUTS, strict=True
        ):
            # Poolings round sizes up; a strided convolution, down: zeros make up the difference.
            rows = max(source.shape[-2], (height - 1) * stride + 1)
            columns = max(source.shape[-1], (width - 1) * stride + 1)
            results.append(_fit(branch(_fit(source, rows, columns)), height, width))
        return results


def _fit(features: Tensor, height: int, width: int) -> Tensor:
    """Cuts features, or extends them by zeros, at the bottom and right to a size."""
    return F.pad(features, (0, width - features.shape[-1], 0, height - features.shape[-2]))


class DeepLabV1(Segmenter):
    """VGG-16 at output stride 8, a convolutional classifier, optionally multi-scale features.

    Called with images ``[N, 3, H, W]`` (as ``preprocess`` makes them) it returns an ordered
    dictionary with "out", the logits: in evaluation at the images' size, in training at the
    features' (every 8 pixels), for labels downsampled likewise, as the paper trains.

    ``predict`` labels photographs, before and after the CRF; ``loss`` is what to train it with.

    Example:
        >>> import torch, atrousx
        >>> model = atrousx.models.deeplab_v1(num_classes=2)
        >>> model.eval()(torch.rand(1, 3, 41, 49))["out"].shape
        torch.Size([1, 2, 41, 49])
        >>> model.train()(torch.rand(1, 3, 41, 49))["out"].shape
        torch.Size([1, 2, 6, 7])
    """

    fusion = "mean"
    downsamples_labels = True
    # Values in public use with the first paper's networks.
    crf_defaults: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {"bilateral_sigma_xy": 121.0, "bilateral_sigma_rgb": 5.0}
    )

    def __init__(
        self, num_classes: int, fc6: Fc6, multi_scale_features: bool, pooling: Pooling
    ) -> None:
        super().__init__(Preprocess.caffe(), DenseCRF(num_classes, **self.crf_defaults))
        self.fc6 = fc6
        self.backbone = VGG16(pooling, smooth=pooling == "3x3" and fc6.kernel == 3)
        extra = len(MULTI_SCALE_INPUTS) * MULTI_SCALE_CHANNELS if multi_scale_features else 0
        self.classifier = fully_convolutional(fc6, num_classes, extra)
        self.multi_scale = MultiScaleFeatures() if multi_scale_features else None
        # Windows of 3 are centred on every eighth pixel from the first; cells of 8 tile the image.
        self.align_corners = pooling == "3x3"

    def forward(self, input: Tensor) -> OrderedDict[str, Tensor]:
        logits = self.coarse_logits(input)
        if self.training:
            return logits
        size = input.shape[-2:]
        return OrderedDict(out=self.resample(logits["out"], size, align_corners=self.align_corners))

    def coarse_logits(self, images: Tensor) -> OrderedDict[str, Tensor]:
        return OrderedDict(out=self.scores(images))

    def scores(self, input: Tensor) -> Tensor:
        """Logits ``[N, classes, H', W']``, one for every 8 pixels of the images."""
        pools = self.backbone(input)
        features = self.classifier[:-1](pools[-1])
        if self.multi_scale is not None:
            height, width = features.shape[-2:]
            sources = [input, *pools[:4]]
            features = torch.cat([features, *self.multi_scale(sources, height, width)], dim=1)
        result: Tensor = self.classifier[-1](features)
        return result


def deeplab_v1(
    num_classes: int = 21,
    fc6: Fc6Name = "large_fov",
    *,
    multi_scale_features: bool = False,
    pooling: Pooling = "3x3",
) -> DeepLabV1:
    r"""Builds DeepLab v1 with random weights; :func:`from_vgg16` brings ImageNet's.

    .. math::
        \text{labels} = \mathrm{CRF}\big(U_8(W_8 * W_7 * W_6 *_r \mathrm{VGG}_8(x))\big)

    where :math:`\mathrm{VGG}_8` is VGG-16's convolutional part at output stride 8: no subsampling
    at the last two poolings, the fifth stage at rate 2; :math:`*_r` is atrous convolution, and
    :math:`U_8` bilinear upsampling (ReLU and dropout between the layers left out).

    ========== ====== ==== ===== =========== ==================== ==============================
    fc6        kernel rate width parameters  field of view (px)   paper: val mIoU, then with CRF
    ========== ====== ==== ===== =========== ==================== ==============================
    large_fov  3x3    12   1024  20,505,429  224                  62.25, 67.64
    7x7_r4     7x7    4    4096  134,346,581 224                  64.38, 67.64
    4x4_r4     4x4    4    4096  65,140,565  128                  59.80, 63.74
    4x4_r8     4x4    8    4096  65,140,565  224                  63.41, 67.14
    ========== ====== ==== ===== =========== ==================== ==============================

    (parameters at 21 classes). The field of view is the paper's: 8 rate (kernel - 1) + 32 pixels,
    poolings counted and 3x3 convolutions not.

    Args:
        num_classes: channels of the logits, background included.
        fc6: which form the first fully connected layer takes.
        multi_scale_features: the image and the first four poolings' results join the last layer's
            input, after a 3x3 and a 1x1 convolution to 128 channels each: 640 channels more.
        pooling: "3x3" windows as in the released networks, or VGG's "2x2", dilated after the
            strides that are gone: exact with VGG's own weights, on images of 16 pixels or more.

    Returns:
        A :class:`DeepLabV1`, from images ``[N, 3, H, W]`` to an ordered dictionary with "out", the
        logits ``[N, num_classes, H, W]``.

    Raises:
        ValueError: an argument outside the values above.

    Source: "Semantic Image Segmentation with Deep Convolutional Nets and Fully Connected CRFs",
    arXiv:1412.7062, sections 3.1, 3.2, 4 and tables 1 and 2.

    Example:
        >>> import torch, atrousx
        >>> model = atrousx.models.deeplab_v1(fc6="large_fov").eval()
        >>> model(torch.rand(1, 3, 65, 65))["out"].shape
        torch.Size([1, 21, 65, 65])
    """
    check_classes(num_classes)
    check_choice("fc6", fc6, FC6)
    check_choice("pooling", pooling, POOLINGS)
    return DeepLabV1(num_classes, FC6[fc6], multi_scale_features, pooling)
