"""DeepLab v1: VGG-16 with atrous convolutions in place of fully connected layers, then a CRF."""

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
from .backbones.vgg import OUT_CHANNELS, POOLINGS, VGG16, Fc6, Pooling, fully_convolutional
from .parameter_groups import Multipliers
from .preprocess import Preprocess
from .segmenter import Segmenter
from .width import check_width, scaled

MULTI_SCALE_CHANNELS = 128
# Channels of the image and of the first four poolings' results, and the strides that bring them to
# the features' size.
MULTI_SCALE_INPUTS = ((3, 8), (64, 4), (128, 2), (256, 1), (512, 1))


FC6 = {
    "large_fov": Fc6(3, 12, 1024),
    "7x7_r4": Fc6(7, 4, 4096),
    "4x4_r4": Fc6(4, 4, 4096),
    "4x4_r8": Fc6(4, 8, 4096),
}
Fc6Name = Literal["large_fov", "7x7_r4", "4x4_r4", "4x4_r8"]


class MultiScaleFeatures(nn.Module):
    """A 3x3 and a 1x1 convolution on the image and on each of the first four poolings' results."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        own = scaled(MULTI_SCALE_CHANNELS, width)
        image, *pools = MULTI_SCALE_INPUTS
        inputs = [image, *((scaled(channels, width), stride) for channels, stride in pools)]
        self.branches = nn.ModuleList(
            nn.Sequential(
                AtrousConv2d(channels, own, 3, stride, padding=1),
                nn.ReLU(inplace=True),
                nn.Dropout(0.5),
                AtrousConv2d(own, own, 1),
                nn.ReLU(inplace=True),
                nn.Dropout(0.5),
            )
            for channels, stride in inputs
        )

    def forward(self, sources: list[Tensor], height: int, width: int) -> list[Tensor]:
        results = []
        for source, branch, (_, stride) in zip(
            sources, self.branches, MULTI_SCALE_INPUTS, strict=True
        ):
            # Poolings round sizes up, but strided convolutions round them down. Zeros fill the gap.
            rows = max(source.shape[-2], (height - 1) * stride + 1)
            columns = max(source.shape[-1], (width - 1) * stride + 1)
            results.append(_fit(branch(_fit(source, rows, columns)), height, width))
        return results


def _fit(features: Tensor, height: int, width: int) -> Tensor:
    """Cuts features to a size, or extends them by zeros, at the bottom and at the right."""
    return F.pad(features, (0, width - features.shape[-1], 0, height - features.shape[-2]))


class DeepLabV1(Segmenter):
    """VGG-16 at output stride 8 with a convolutional classifier and optional multi-scale features.

    A call takes images ``[N, 3, H, W]`` (as ``preprocess`` makes them). It returns an ordered
    dictionary with "out", the logits. In evaluation the logits have the images' size. In training
    they have the features' size (one for every 8 pixels), because the paper downsamples the labels.

    ``predict`` labels photographs, before and after the CRF. ``loss`` is the training loss.

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
    published = Multipliers(lr=1e-3, weight_decay=5e-4, head=10, bias=2, decay_all=False)
    # These values are in public use with the networks of the first paper.
    crf_defaults: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {"bilateral_sigma_xy": 121.0, "bilateral_sigma_rgb": 5.0}
    )

    def __init__(
        self,
        num_classes: int,
        fc6: Fc6,
        multi_scale_features: bool,
        pooling: Pooling,
        width: float = 1.0,
    ) -> None:
        super().__init__(Preprocess.caffe(), DenseCRF(num_classes, **self.crf_defaults))
        self.fc6 = fc6.scaled(width)
        self.backbone = VGG16(pooling, smooth=pooling == "3x3" and fc6.kernel == 3, width=width)
        own = scaled(MULTI_SCALE_CHANNELS, width)
        self.classifier = fully_convolutional(
            self.fc6,
            num_classes,
            extra=len(MULTI_SCALE_INPUTS) * own if multi_scale_features else 0,
            in_channels=scaled(OUT_CHANNELS, width),
        )
        self.multi_scale = MultiScaleFeatures(width) if multi_scale_features else None
        # With 3x3 windows the features lie on the pixels 0, 8, 16, ... With 2x2 windows each
        # feature covers a cell of 8 pixels.
        self.align_corners = pooling == "3x3"

    def outputs(self, images: Tensor) -> OrderedDict[str, Tensor]:
        logits = self.coarse_logits(images)
        if self.training:
            return logits
        size = images.shape[-2:]
        return OrderedDict(out=self.resample(logits["out"], size, align_corners=self.align_corners))

    def coarse_logits(self, images: Tensor) -> OrderedDict[str, Tensor]:
        return OrderedDict(out=self.scores(images))

    def scores(self, input: Tensor) -> Tensor:
        """Returns the logits ``[N, classes, H', W']``, one for every 8 pixels of the images."""
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
    width: float = 1.0,
) -> DeepLabV1:
    r"""Builds DeepLab v1 with random weights; :func:`from_vgg16` uses ImageNet weights.

    .. math::
        \text{labels} = \mathrm{CRF}\big(U_8(W_8 * W_7 * W_6 *_r \mathrm{VGG}_8(x))\big)

    where :math:`\mathrm{VGG}_8` is the convolutional part of VGG-16 at output stride 8: the last
    two poolings do not subsample, and the fifth stage has rate 2. :math:`*_r` is atrous
    convolution, and :math:`U_8` is bilinear upsampling. The equation leaves out ReLU and dropout
    between the layers.

    ========== ====== ==== ===== =========== ==================== ==============================
    fc6        kernel rate width parameters  field of view (px)   paper: val mIoU, then with CRF
    ========== ====== ==== ===== =========== ==================== ==============================
    large_fov  3x3    12   1024  20,505,429  224                  62.25, 67.64
    7x7_r4     7x7    4    4096  134,346,581 224                  64.38, 67.64
    4x4_r4     4x4    4    4096  65,140,565  128                  59.80, 63.74
    4x4_r8     4x4    8    4096  65,140,565  224                  63.41, 67.14
    ========== ====== ==== ===== =========== ==================== ==============================

    The number of parameters is for 21 classes. The field of view is computed as in the paper:
    8 rate (kernel - 1) + 32 pixels. It counts the poolings but not the 3x3 convolutions.

    Args:
        num_classes: channels of the logits, including the background.
        fc6: the form of the first fully connected layer, a row of the table.
        multi_scale_features: adds 640 channels to the input of the last layer: 128 channels from
            the image and from each of the first four poolings' results. Each set passes through a
            3x3 and a 1x1 convolution.
        pooling: "3x3" uses windows as in the released networks. "2x2" uses VGG's own windows,
            dilated after the removed strides. They are exact with VGG's own weights, and need
            images of at least 16 pixels in height and width.
        width: a factor for the channels of all layers, rounded to multiples of 8. A narrow network
            costs little, for tests and small devices.

    Returns:
        A :class:`DeepLabV1`. It maps images ``[N, 3, H, W]`` to an ordered dictionary with "out",
        the logits ``[N, num_classes, H, W]``.

    Raises:
        ValueError: an argument has none of the values above.

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
    check_width(width)
    return DeepLabV1(num_classes, FC6[fc6], multi_scale_features, pooling, width)
