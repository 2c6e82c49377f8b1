"""DeepLab v3+: an encoder as in DeepLab v3, and a decoder that refines its result."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ..nn.aspp import conv_bn_relu
from ..ops import upsample_bilinear2d
from ._check import check_choice, check_classes
from .backbones.resnet import UNITS, ResNet
from .backbones.xception import FORMS
from .forms import V3PLUS, FCNHead, Form, Net, build_backbone, check_backbone, check_output_stride
from .parameter_groups import Multipliers
from .preprocess import Preprocess
from .segmenter import Segmenter
from .width import check_width

BACKBONES = (*UNITS, *FORMS, "mobilenet_v2")


class Decoder(nn.Module):
    r"""ASPP, and convolutions over its enlarged result beside low-level features.

    .. math:: z = W\, C\big(\big[\,U(\mathrm{ASPP}(x_{out})),\; P(x_{low})\,\big]\big)

    :math:`P` is a 1x1 convolution to few channels, :math:`C` one or two 3x3 convolutions;
    normalisation and ReLU follow each. :math:`U` resamples to the size of the low-level features.
    """

    # ``models.to_torch`` replaces this function by PyTorch's.
    resample = staticmethod(upsample_bilinear2d)

    def __init__(self, net: Net, num_classes: int, form: Form, output_stride: int) -> None:
        super().__init__()
        self.low_first, self.align_corners = form.low_first, form.align_corners
        self.project = nn.Sequential(*conv_bn_relu(net.low_channels, form.low_channels))
        self.aspp = form.aspp(net.out_channels, output_stride)
        self.refine = nn.Sequential(*form.conv(form.channels)) if form.refines else nn.Identity()
        channels = form.channels + form.low_channels
        self.classifier = nn.Sequential(*form.last_layers(channels, num_classes))

    def forward(self, features: OrderedDict[str, Tensor]) -> Tensor:
        low = self.project(features["low"])
        encoded = self.refine(self.aspp(features["out"]))
        enlarged = self.resample(encoded, low.shape[-2:], align_corners=self.align_corners)
        parts = (low, enlarged) if self.low_first else (enlarged, low)
        logits: Tensor = self.classifier(torch.cat(parts, dim=1))
        return logits


class DeepLabV3Plus(Segmenter):
    """A backbone, and a head that reads its last and its low-level features.

    A call takes images ``[N, 3, H, W]`` as ``preprocess`` makes them. It returns an ordered
    dictionary with "out", the logits ``[N, classes, H, W]``. If there is an auxiliary classifier,
    "aux" has its logits.

    Example:
        >>> import torch, atrousx
        >>> model = atrousx.models.deeplab_v3plus(num_classes=2, width=0.1).eval()
        >>> model(torch.rand(1, 3, 33, 49))["out"].shape
        torch.Size([1, 2, 33, 49])
    """

    fusion = "mean"
    published = Multipliers(lr=7e-3, weight_decay=4e-5, bias=2, decay_all=False)

    def __init__(
        self,
        backbone: Net,
        classifier: Decoder,
        preprocess: Preprocess,
        aux_classifier: nn.Module | None = None,
    ) -> None:
        super().__init__(preprocess, None)
        self.align_corners = classifier.align_corners
        self.backbone = backbone
        self.classifier = classifier
        self.aux_classifier = aux_classifier

    def coarse_logits(self, images: Tensor) -> OrderedDict[str, Tensor]:
        features = self.backbone(images)
        logits = OrderedDict(out=self.classifier(features))
        if self.aux_classifier is not None:
            logits["aux"] = self.aux_classifier(features["aux"])
        return logits


def deeplab_v3plus(
    num_classes: int = 21,
    backbone: Literal[
        "resnet50", "resnet101", "xception65", "xception71", "mobilenet_v2"
    ] = "resnet50",
    *,
    output_stride: int | None = None,
    layout: Literal["paper", "vainf", "smp", "mmseg"] = "paper",
    separable: bool | None = None,
    multi_grid: Sequence[int] | None = None,
    aux: bool = False,
    width: float = 1.0,
) -> DeepLabV3Plus:
    r"""Builds DeepLab v3+ with random weights.

    .. math::
        \text{logits} = U_{H \times W}\Big(W\, C\big(\big[\,U(\mathrm{ASPP}_{r}(x_{out})),\;
        P(x_{low})\,\big]\big)\Big), \qquad r = (6, 12, 18) \cdot 16 / \text{output stride}

    The encoder is that of DeepLab v3. The decoder enlarges its result to output stride 4, where
    low-level features of the backbone join it, and refines both with 3x3 convolutions :math:`C`.

    ========== ===================================================================================
    layout     what it is
    ========== ===================================================================================
    "paper"    separable convolutions, also normalised inside; two in the decoder; multi-grid
    "vainf"    VainF's DeepLabV3Plus-Pytorch: plain convolutions, one in the decoder
    "smp"      ``DeepLabV3Plus`` of segmentation_models.pytorch: separable convolutions, one more
               after ASPP, one in the decoder, the rates (12, 24, 36), corners aligned
    "mmseg"    ``deeplabv3plus`` of mmsegmentation: 512 channels, a 3x3 projection in ASPP, a ResNet
               with a deep stem
    ========== ===================================================================================

    :func:`load_weights` loads the weights of each into the same layout.

    Args:
        num_classes: channels of the logits, including the background.
        backbone: "resnet50", "resnet101", "xception65", "xception71" or "mobilenet_v2".
        output_stride: image pixels per feature of the encoder: 8, 16 or 32. The default is 16, and
            8 for "mmseg". :func:`set_output_stride` changes it later.
        layout: a layout of the table. "smp" and "mmseg" need a ResNet, "vainf" a
            ResNet or MobileNetV2.
        separable: whether the 3x3 convolutions of ASPP and decoder are depthwise separable; None is
            the layout's choice.
        multi_grid: rates of the last units of a ResNet, only for the "paper" layout; (1, 2, 4) by
            default.
        aux: adds an auxiliary classifier for training, as mmsegmentation has; needs a ResNet.
        width: a factor for the channels of all layers, as in :func:`deeplab_v1`.

    Returns:
        A :class:`DeepLabV3Plus`. It maps images ``[N, 3, H, W]`` to an ordered dictionary with
        "out", the logits ``[N, num_classes, H, W]``, and with ``aux`` also "aux".

    Raises:
        ValueError: an argument has none of the values above.

    Source: "Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation",
    arXiv:1802.02611; the public code of each layout.

    Example:
        >>> import torch, atrousx
        >>> model = atrousx.models.deeplab_v3plus(backbone="xception65", width=0.1).eval()
        >>> model(torch.rand(1, 3, 65, 97))["out"].shape
        torch.Size([1, 21, 65, 97])
    """
    check_classes(num_classes)
    check_choice("backbone", backbone, BACKBONES)
    check_choice("layout", layout, V3PLUS)
    check_width(width)
    check_backbone(backbone, layout, multi_grid, aux)
    grid = None if multi_grid is None else tuple(multi_grid)
    form = V3PLUS[layout].replaced(width, separable=separable, multi_grid=grid)
    stride = form.output_stride if output_stride is None else output_stride
    check_output_stride(stride, 4)
    net = build_backbone(backbone, layout, form, stride, low=True, aux=aux, width=width)
    preprocess = Preprocess.tensorflow() if backbone in FORMS else Preprocess.imagenet()
    auxiliary = FCNHead(net.aux_channels, num_classes) if isinstance(net, ResNet) and aux else None
    model = DeepLabV3Plus(net, Decoder(net, num_classes, form, stride), preprocess, auxiliary)
    form.set_momentum(model)
    return model
