"""DeepLab v2: ResNet-101 or VGG-16, a sum of atrous branches, the maximum over three scales."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

import torch
from torch import Tensor, nn

from ..nn import AtrousConv2d, DenseCRF
from ._check import check_choice, check_classes
from .backbones.resnet import EXPANSION, STAGE_WIDTHS, UNITS, ResNet, plan_stages
from .backbones.vgg import OUT_CHANNELS, VGG16, Fc6, fully_convolutional
from .freezing import freeze_bn
from .heads import SummedBranches
from .parameter_groups import Multipliers
from .preprocess import Preprocess
from .segmenter import Segmenter
from .width import check_width, scaled

RATES = {"aspp_l": (6, 12, 18, 24), "aspp_s": (2, 4, 8, 12), "large_fov": (12,)}
BACKBONES = ("resnet101", "vgg16")
SMALLER_SCALES = (0.75, 0.5)
FC6_WIDTH = 1024


class DeepLabV2(Segmenter):
    """A backbone at output stride 8 with summed atrous branches and optionally three scales.

    A call takes images ``[N, 3, H, W]`` (as ``preprocess`` makes them). It returns an ordered
    dictionary. In evaluation it has "out", the logits at the images' size. In training it has the
    logits for the paper's losses, one for every 8 pixels of their scale. "out" is fused over the
    scales. With several scales there are also "scale_1", "scale_0.75" and "scale_0.5".

    ``predict`` labels photographs, before and after the CRF. ``loss`` is the training loss.

    Example:
        >>> import torch, atrousx
        >>> model = atrousx.models.deeplab_v2(num_classes=2, backbone="vgg16", head="large_fov")
        >>> [(k, tuple(v.shape)) for k, v in model.train()(torch.rand(1, 3, 65, 65)).items()]
        [('out', (1, 2, 9, 9)), ('scale_1', (1, 2, 9, 9)), ('scale_0.75', (1, 2, 7, 7)), \
('scale_0.5', (1, 2, 5, 5))]
    """

    fusion = "max"
    downsamples_labels = True
    align_corners = True
    published = Multipliers(lr=2.5e-4, weight_decay=5e-4, head=10, bias=2, decay_all=False)

    def __init__(
        self, backbone: nn.Module, classifier: SummedBranches, num_classes: int, multi_scale: bool
    ) -> None:
        # The defaults of DenseCRF are the values in public use with the second paper's networks.
        super().__init__(Preprocess.caffe(), DenseCRF(num_classes))
        self.backbone = backbone
        self.classifier = classifier
        self.scales = SMALLER_SCALES if multi_scale else ()

    def outputs(self, images: Tensor) -> OrderedDict[str, Tensor]:
        logits = self.coarse_logits(images)
        if self.training:
            return logits
        return OrderedDict(out=self.resample(logits["out"], images.shape[-2:], align_corners=True))

    def coarse_logits(self, images: Tensor) -> OrderedDict[str, Tensor]:
        pyramid = OrderedDict({"scale_1": self.scores(images)})
        for scale in self.scales:
            # The corner pixels stay corner pixels: 321 pixels become 241 and 161.
            size = [int((extent - 1) * scale) + 1 for extent in images.shape[-2:]]
            smaller = self.resample(images, size, align_corners=True)
            pyramid[f"scale_{scale}"] = self.scores(smaller)
        fused = pyramid["scale_1"]
        for scores in list(pyramid.values())[1:]:
            resized = self.resample(scores, fused.shape[-2:], align_corners=True)
            fused = torch.maximum(fused, resized)
        return OrderedDict(out=fused, **pyramid) if self.scales else OrderedDict(out=fused)

    def scores(self, input: Tensor) -> Tensor:
        """Returns the logits ``[N, classes, H', W']`` of one scale, one for every 8 pixels."""
        features = self.backbone(input)
        last = features["out"] if isinstance(features, dict) else features[-1]
        result: Tensor = self.classifier(last)
        return result


def deeplab_v2(
    num_classes: int = 21,
    backbone: Literal["resnet101", "vgg16"] = "resnet101",
    head: Literal["aspp_l", "aspp_s", "large_fov"] = "aspp_l",
    *,
    multi_scale: bool = True,
    width: float = 1.0,
) -> DeepLabV2:
    r"""Builds DeepLab v2 with random weights.

    .. math::
        \text{labels} = \mathrm{CRF}\Big(U\big(\max_{s \in \{1/2, 3/4, 1\}}
        U\big(\textstyle\sum_i B_{r_i}(F_8(x_s))\big)\big)\Big)

    where :math:`F_8` is the backbone at output stride 8, :math:`x_s` the image resized by s,
    :math:`U` bilinear upsampling and :math:`B_r` a branch at the atrous rate r. On ResNet-101 a
    branch is one 3x3 convolution with bias to the classes. On VGG-16 a branch is fc6 (3x3, 1024),
    fc7 and fc8.

    ResNet-101 has the original form. The first 1x1 convolution of a unit has the stride. The
    max-pooling rounds sizes up. The last two stages have the rates 2 and 4. Batch normalisation is
    frozen (:func:`freeze_bn`).

    Args:
        num_classes: channels of the logits, including the background.
        backbone: "resnet101", or "vgg16" with the 3x3 poolings of :func:`deeplab_v1`.
        head: "aspp_l" with rates 6, 12, 18, 24; "aspp_s" with rates 2, 4, 8, 12; or "large_fov"
            with rate 12.
        multi_scale: also runs the network at 0.75 and 0.5 of the image's size and takes the maximum
            of the logits.
        width: a factor for the channels of all layers, as in :func:`deeplab_v1`.

    Returns:
        A :class:`DeepLabV2`.

    Raises:
        ValueError: an argument has none of the values above.

    Source: "DeepLab: Semantic Image Segmentation with Deep Convolutional Nets, Atrous Convolution,
    and Fully Connected CRFs", arXiv:1606.00915, sections 3.1, 3.2, 4.1 and table 4.

    Example:
        >>> import torch, atrousx
        >>> model = atrousx.models.deeplab_v2(multi_scale=False).eval()
        >>> model(torch.rand(1, 3, 65, 65))["out"].shape
        torch.Size([1, 21, 65, 65])
    """
    check_classes(num_classes)
    check_choice("backbone", backbone, BACKBONES)
    check_choice("head", head, RATES)
    check_width(width)
    extractor: nn.Module
    branches: list[nn.Module]
    if backbone == "vgg16":
        extractor = VGG16("3x3", smooth=True, width=width)
        forms = [Fc6(3, rate, FC6_WIDTH).scaled(width) for rate in RATES[head]]
        channels = scaled(OUT_CHANNELS, width)
        branches = [fully_convolutional(fc6, num_classes, in_channels=channels) for fc6 in forms]
    else:
        extractor = freeze_bn(ResNet(plan_stages(UNITS[backbone], 8), caffe=True, width=width))
        channels = EXPANSION * scaled(STAGE_WIDTHS[-1], width)
        branches = [
            AtrousConv2d(channels, num_classes, 3, padding=rate, dilation=rate)
            for rate in RATES[head]
        ]
    classifier = SummedBranches(branches)
    for layer in classifier.last_layers():
        nn.init.normal_(layer.weight, std=0.01)
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)
    return DeepLabV2(extractor, classifier, num_classes, multi_scale)
