"""DeepLab v3: a dilated ResNet, atrous spatial pyramid pooling, logits at the image's size."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from ..nn import ASPP, AtrousConv2d
from ..ops import upsample_bilinear2d
from .resnet import EXPANSION, STAGE_WIDTHS, UNITS, ResNet, plan_stages

PAPER_RATES = (6, 12, 18)
PAPER_OUTPUT_STRIDE = 16
PAPER_MULTI_GRID = (1, 2, 4)
HEAD_CHANNELS = 256


class DeepLabV3(nn.Module):
    """A backbone, a head on its last features and, in training, one on those before.

    Called with images ``[N, 3, H, W]`` (RGB in 0..1, minus (0.485, 0.456, 0.406), over (0.229,
    0.224, 0.225), for torchvision's weights) it returns an ordered dictionary: "out", the logits
    ``[N, classes, H, W]`` and, where there is an auxiliary classifier, "aux", its logits.

    Example:
        >>> import torch, atrousx
        >>> model = atrousx.models.deeplab_v3(num_classes=2, aux=True).eval()
        >>> [(name, logits.shape) for name, logits in model(torch.rand(1, 3, 33, 49)).items()]
        [('out', torch.Size([1, 2, 33, 49])), ('aux', torch.Size([1, 2, 33, 49]))]
    """

    def __init__(
        self, backbone: nn.Module, classifier: nn.Module, aux_classifier: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = classifier
        self.aux_classifier = aux_classifier

    def forward(self, input: Tensor) -> OrderedDict[str, Tensor]:
        size = input.shape[-2:]
        features = self.backbone(input)
        logits = OrderedDict(out=upsample_bilinear2d(self.classifier(features["out"]), size))
        if self.aux_classifier is not None:
            logits["aux"] = upsample_bilinear2d(self.aux_classifier(features["aux"]), size)
        return logits


class FCNHead(nn.Sequential):
    """The auxiliary classifier: 3x3 to a quarter of the channels, then 1x1 to the logits."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        channels = in_channels // 4
        super().__init__(
            AtrousConv2d(in_channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Dropout(0.1),
            AtrousConv2d(channels, num_classes, 1),
        )


def paper_head(in_channels: int, num_classes: int, rates: Sequence[int]) -> nn.Sequential:
    return nn.Sequential(
        ASPP(in_channels, rates, HEAD_CHANNELS, dropout=0.0),
        AtrousConv2d(HEAD_CHANNELS, num_classes, 1),
    )


def torchvision_head(in_channels: int, num_classes: int, rates: Sequence[int]) -> nn.Sequential:
    """The paper's, with dropout and one more 3x3 convolution before the logits."""
    return nn.Sequential(
        ASPP(in_channels, rates, HEAD_CHANNELS, dropout=0.5),
        AtrousConv2d(HEAD_CHANNELS, HEAD_CHANNELS, 3, padding=1, bias=False),
        nn.BatchNorm2d(HEAD_CHANNELS),
        nn.ReLU(),
        AtrousConv2d(HEAD_CHANNELS, num_classes, 1),
    )


def deeplab_v3(
    num_classes: int = 21,
    backbone: Literal["resnet50", "resnet101"] = "resnet50",
    *,
    output_stride: Literal[8, 16] | None = None,
    multi_grid: Sequence[int] | None = None,
    layout: Literal["paper", "torchvision"] = "paper",
    aux: bool = False,
) -> DeepLabV3:
    r"""Builds DeepLab v3 with random weights.

    .. math::
        \text{logits} = U_{H \times W}\big(W\, \mathrm{ASPP}_{r}(\mathrm{ResNet}(x))\big),
        \qquad r = (6, 12, 18) \cdot 16 / \text{output stride}

    where the ResNet trades its last strides for atrous rates and :math:`U` is bilinear resampling
    to the image's size. Two layouts:

    - "paper": the last stage's units have the rates ``multi_grid`` times the stage's; a 1x1
      convolution makes the logits from ASPP.
    - "torchvision": torchvision's ``deeplabv3_resnet50`` and ``deeplabv3_resnet101``, parameter for
      parameter and key for key, so that their weights load (:func:`load_weights`). No multi-grid,
      the first unit of each dilated stage keeps the rate of the stage before, dropout, and one
      more 3x3 convolution before the logits.

    Args:
        num_classes: channels of the logits, background included.
        backbone: "resnet50" or "resnet101".
        output_stride: image pixels per feature, 8 or 16; by default the layout's own, 16 in the
            paper's training and 8 in torchvision.
        multi_grid: three rates, by default (1, 2, 4); of the "paper" layout only.
        layout: "paper" or "torchvision".
        aux: adds torchvision's auxiliary classifier, a second output for training.

    Returns:
        A module from images ``[N, 3, H, W]`` to an ordered dictionary with "out", the logits
        ``[N, num_classes, H, W]``, and with ``aux`` also "aux". In training it needs at least two
        images, since the pooled branch of ASPP is normalised over the batch.

    Raises:
        ValueError: an argument outside the values above.

    Source: "Rethinking Atrous Convolution for Semantic Image Segmentation", arXiv:1706.05587.

    Example:
        >>> import torch, atrousx
        >>> model = atrousx.models.deeplab_v3(layout="torchvision").eval()
        >>> model(torch.rand(1, 3, 65, 97))["out"].shape
        torch.Size([1, 21, 65, 97])
    """
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    if backbone not in UNITS:
        raise ValueError(f"backbone must be one of {', '.join(UNITS)}, got {backbone!r}")
    if output_stride not in (None, 8, 16):
        raise ValueError(f"output_stride must be 8 or 16, got {output_stride!r}")
    if layout == "paper":
        stride = output_stride or PAPER_OUTPUT_STRIDE
        grid = PAPER_MULTI_GRID if multi_grid is None else multi_grid
        stages = plan_stages(UNITS[backbone], stride, grid)
        head = paper_head
    elif layout == "torchvision":
        if multi_grid is not None:
            raise ValueError("multi_grid belongs to layout='paper', torchvision's has none")
        stride = output_stride or 8
        stages = plan_stages(UNITS[backbone], stride, first_unit_keeps_rate=True)
        head = torchvision_head
    else:
        raise ValueError(f"layout must be 'paper' or 'torchvision', got {layout!r}")
    rates = [rate * PAPER_OUTPUT_STRIDE // stride for rate in PAPER_RATES]
    _, _, before, last = (EXPANSION * width for width in STAGE_WIDTHS)
    return DeepLabV3(
        ResNet(stages, aux),
        head(last, num_classes, rates),
        FCNHead(before, num_classes) if aux else None,
    )
