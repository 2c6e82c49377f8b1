"""DeepLab v3: a dilated ResNet with atrous spatial pyramid pooling, or a cascade of blocks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from ..nn import ASPP, AtrousConv2d
from ._check import check_choice, check_classes
from .backbones.resnet import EXPANSION, STAGE_WIDTHS, UNITS, ResNet, plan_stages
from .parameter_groups import Multipliers
from .preprocess import Preprocess
from .segmenter import Segmenter
from .width import check_width, scaled

PAPER_RATES = (6, 12, 18)
PAPER_OUTPUT_STRIDE = 16
PAPER_MULTI_GRID = {"aspp": (1, 2, 4), "cascade": (1, 2, 1)}
PAPER_BN_MOMENTUM = 3e-4
HEAD_CHANNELS = 256
# The output stride after the stem. Each block after the first can double it.
FIRST_OUTPUT_STRIDE = 4


class DeepLabV3(Segmenter):
    """A backbone with a head on its last features, and optionally an auxiliary head for training.

    A call takes images ``[N, 3, H, W]`` as ``preprocess`` makes them: RGB in 0..1, minus (0.485,
    0.456, 0.406), divided by (0.229, 0.224, 0.225). It returns an ordered dictionary with "out",
    the logits ``[N, classes, H, W]``. If there is an auxiliary classifier, "aux" has its logits.

    ``predict`` labels photographs and can average several scales and mirror images. ``loss`` is the
    training loss.

    Example:
        >>> import torch, atrousx
        >>> model = atrousx.models.deeplab_v3(num_classes=2, aux=True).eval()
        >>> [(name, logits.shape) for name, logits in model(torch.rand(1, 3, 33, 49)).items()]
        [('out', torch.Size([1, 2, 33, 49])), ('aux', torch.Size([1, 2, 33, 49]))]
    """

    fusion = "mean"
    published = Multipliers(lr=7e-3, weight_decay=1e-4, bias=2, decay_all=False)

    def __init__(
        self, backbone: ResNet, classifier: nn.Module, aux_classifier: nn.Module | None = None
    ) -> None:
        super().__init__(Preprocess.imagenet(), None)
        self.backbone = backbone
        self.classifier = classifier
        self.aux_classifier = aux_classifier

    def coarse_logits(self, images: Tensor) -> OrderedDict[str, Tensor]:
        features = self.backbone(images)
        logits = OrderedDict(out=self.classifier(features["out"]))
        if self.aux_classifier is not None:
            logits["aux"] = self.aux_classifier(features["aux"])
        return logits


class FCNHead(nn.Sequential):
    """The auxiliary classifier: a 3x3 convolution to a quarter of the channels, a 1x1 to logits."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        channels = in_channels // 4
        super().__init__(
            AtrousConv2d(in_channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Dropout(0.1),
            AtrousConv2d(channels, num_classes, 1),
        )


def paper_head(
    in_channels: int, num_classes: int, rates: Sequence[int], channels: int = HEAD_CHANNELS
) -> nn.Sequential:
    return nn.Sequential(
        ASPP(in_channels, rates, channels, dropout=0.0),
        AtrousConv2d(channels, num_classes, 1),
    )


def torchvision_head(
    in_channels: int, num_classes: int, rates: Sequence[int], channels: int = HEAD_CHANNELS
) -> nn.Sequential:
    """Returns the paper's head with dropout and one more 3x3 convolution before the logits."""
    return nn.Sequential(
        ASPP(in_channels, rates, channels, dropout=0.5),
        AtrousConv2d(channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        AtrousConv2d(channels, num_classes, 1),
    )


def deeplab_v3(
    num_classes: int = 21,
    backbone: Literal["resnet50", "resnet101"] = "resnet50",
    *,
    output_stride: int | None = None,
    head: Literal["aspp", "cascade"] = "aspp",
    blocks: int | None = None,
    multi_grid: Sequence[int] | None = None,
    layout: Literal["paper", "torchvision"] = "paper",
    aux: bool = False,
    width: float = 1.0,
) -> DeepLabV3:
    r"""Builds DeepLab v3 with random weights.

    .. math::
        \text{logits} = U_{H \times W}\big(W\, \mathrm{ASPP}_{r}(\mathrm{ResNet}(x))\big),
        \qquad r = (6, 12, 18) \cdot 16 / \text{output stride}

    where the ResNet has atrous rates in place of its last strides, and :math:`U` is bilinear
    resampling to the image's size. There are two heads:

    - "aspp": atrous spatial pyramid pooling with image-level features (section 3.3).
    - "cascade": blocks 5 to 7, which are copies of block 4, and a 1x1 convolution to the logits
      (section 3.2). Without dilation each block would halve the size. Once the output stride is
      reached, each block doubles the rate instead. At output stride 16 the blocks 4 to 7 have the
      rates 2, 4, 8, 16.

    There are two layouts:

    - "paper": from the fourth block on, the rates of a block's units are ``multi_grid`` times the
      block's rate. A 1x1 convolution makes the logits from ASPP's result. The running statistics of
      batch normalisation decay by 0.9997.
    - "torchvision": the same parameters and keys as torchvision's ``deeplabv3_resnet50`` and
      ``deeplabv3_resnet101``, so that :func:`load_weights` loads their weights. There is no
      multi-grid. The first unit of each dilated stage keeps the rate of the stage before. There is
      dropout, and one more 3x3 convolution before the logits.

    Args:
        num_classes: channels of the logits, including the background.
        backbone: "resnet50" or "resnet101".
        output_stride: image pixels per feature: 8, 16 or 32. The cascade allows more, up to 256,
            depending on its last block (32 for block 4, 64 for block 5, ...). The default is 16 in
            the "paper" layout (the paper's training) and 8 in the "torchvision" layout.
            :func:`set_output_stride` changes it later.
        head: "aspp" or "cascade". "cascade" needs the "paper" layout.
        blocks: the last block of the cascade, 4 to 7; by default 7.
        multi_grid: three rates; only for the "paper" layout. The defaults are the best in the
            paper: (1, 2, 4) for ASPP and (1, 2, 1) for the cascade.
        layout: "paper" or "torchvision".
        aux: adds torchvision's auxiliary classifier, a second output for training.
        width: a factor for the channels of all layers, as in :func:`deeplab_v1`.

    Returns:
        A :class:`DeepLabV3`. It maps images ``[N, 3, H, W]`` to an ordered dictionary with "out",
        the logits ``[N, num_classes, H, W]``, and with ``aux`` also "aux".

    Raises:
        ValueError: an argument has none of the values above.

    Source: "Rethinking Atrous Convolution for Semantic Image Segmentation", arXiv:1706.05587,
    sections 3.2, 3.3, 4 and tables 1 to 6.

    Example:
        >>> import torch, atrousx
        >>> model = atrousx.models.deeplab_v3(layout="torchvision").eval()
        >>> model(torch.rand(1, 3, 65, 97))["out"].shape
        torch.Size([1, 21, 65, 97])
    """
    check_classes(num_classes)
    check_choice("backbone", backbone, UNITS)
    check_choice("layout", layout, ("paper", "torchvision"))
    check_choice("head", head, ("aspp", "cascade"))
    check_width(width)
    _check_head(head, blocks, multi_grid, layout)
    last_block = 4 if head == "aspp" else blocks or 7
    default = PAPER_OUTPUT_STRIDE if layout == "paper" else 8
    stride = default if output_stride is None else output_stride
    check_output_stride(stride, last_block)
    units = UNITS[backbone] + UNITS[backbone][-1:] * (last_block - 4)
    _, _, before, last = (EXPANSION * scaled(channels, width) for channels in STAGE_WIDTHS)
    own = scaled(HEAD_CHANNELS, width)
    rates = [rate * PAPER_OUTPUT_STRIDE // stride for rate in PAPER_RATES]
    if layout == "torchvision":
        stages = plan_stages(units, stride, first_unit_keeps_rate=True)
        classifier = torchvision_head(last, num_classes, rates, own)
    else:
        stages = plan_stages(units, stride, multi_grid or PAPER_MULTI_GRID[head])
        classifier = (
            paper_head(last, num_classes, rates, own)
            if head == "aspp"
            else nn.Sequential(AtrousConv2d(last, num_classes, 1))
        )
    auxiliary = FCNHead(before, num_classes) if aux else None
    model = DeepLabV3(ResNet(stages, aux, width=width), classifier, auxiliary)
    if layout == "paper":
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = PAPER_BN_MOMENTUM
    return model


def check_output_stride(output_stride: int, last_block: int) -> None:
    """Raises ValueError unless the blocks can reach the output stride, a power of 2 from 8 on."""
    allowed = [FIRST_OUTPUT_STRIDE * 2**block for block in range(1, last_block)]
    if output_stride not in allowed:
        raise ValueError(
            f"output_stride must be one of {', '.join(map(str, allowed))} "
            f"with {last_block} blocks, got {output_stride!r}"
        )


def _check_head(
    head: str, blocks: int | None, multi_grid: Sequence[int] | None, layout: str
) -> None:
    if layout == "torchvision" and head == "cascade":
        raise ValueError("head='cascade' belongs to layout='paper', torchvision has none")
    if layout == "torchvision" and multi_grid is not None:
        raise ValueError("multi_grid belongs to layout='paper', torchvision's has none")
    if blocks is not None and head == "aspp":
        raise ValueError("blocks belongs to head='cascade'; ASPP follows block 4")
    if blocks is not None and blocks not in (4, 5, 6, 7):
        raise ValueError(f"blocks must be 4, 5, 6 or 7, got {blocks!r}")
    if multi_grid is not None and len(multi_grid) == 0:
        raise ValueError("multi_grid must hold a positive rate for each of a block's 3 units")
