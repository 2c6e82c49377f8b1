"""DeepLab v3: a dilated ResNet with atrous spatial pyramid pooling, or a cascade of blocks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from ._check import check_choice, check_classes
from .backbones.resnet import UNITS, ResNet
from .forms import V3, FCNHead, Net, build_backbone, check_backbone, check_output_stride
from .parameter_groups import Multipliers
from .preprocess import Preprocess
from .segmenter import Segmenter
from .width import check_width

CASCADE_MULTI_GRID = (1, 2, 1)
BACKBONES = (*UNITS, "mobilenet_v2")


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
        self, backbone: Net, classifier: nn.Module, aux_classifier: nn.Module | None = None
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


def deeplab_v3(
    num_classes: int = 21,
    backbone: Literal["resnet50", "resnet101", "mobilenet_v2"] = "resnet50",
    *,
    output_stride: int | None = None,
    head: Literal["aspp", "cascade"] = "aspp",
    blocks: int | None = None,
    multi_grid: Sequence[int] | None = None,
    layout: Literal["paper", "torchvision", "vainf", "smp", "mmseg"] = "paper",
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

    The layouts have the parameters of public code, so that :func:`load_weights` loads its weights:

    - "paper": from the fourth block on, the rates of a block's units are ``multi_grid`` times the
      block's rate. A 1x1 convolution makes the logits from ASPP's result. The running statistics of
      batch normalisation decay by 0.9997.
    - "torchvision": ``deeplabv3_resnet50`` and ``deeplabv3_resnet101`` of torchvision, with the
      same keys. There is no multi-grid. The first unit of each dilated stage keeps the rate of the
      stage before. There is dropout, and one more 3x3 convolution before the logits.
    - "vainf": VainF's DeepLabV3Plus-Pytorch, which has less dropout than torchvision.
    - "smp": ``DeepLabV3`` of segmentation_models.pytorch. Its rates are (12, 24, 36) at every
      output stride, and resampling aligns the corners.
    - "mmseg": ``deeplabv3`` of mmsegmentation: 512 channels, a 3x3 projection in ASPP, a ResNet
      with three 3x3 convolutions at its start.

    Args:
        num_classes: channels of the logits, including the background.
        backbone: "resnet50", "resnet101", or "mobilenet_v2" in the layouts "paper" and "vainf".
        output_stride: image pixels per feature: 8, 16 or 32. The cascade allows more, up to 256,
            depending on its last block (32 for block 4, 64 for block 5, ...). The default is 16 in
            the layouts "paper" and "vainf", and 8 in the others. :func:`set_output_stride` changes
            it later.
        head: "aspp" or "cascade". "cascade" needs the "paper" layout and a ResNet.
        blocks: the last block of the cascade, 4 to 7; by default 7.
        multi_grid: three rates; only for the "paper" layout. The defaults are the best in the
            paper: (1, 2, 4) for ASPP and (1, 2, 1) for the cascade.
        layout: a layout of the list.
        aux: adds torchvision's auxiliary classifier, a second output for training; needs a ResNet.
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
    check_choice("backbone", backbone, BACKBONES)
    check_choice("layout", layout, V3)
    check_choice("head", head, ("aspp", "cascade"))
    check_width(width)
    _check_head(head, blocks, layout, backbone)
    check_backbone(backbone, layout, multi_grid, aux)
    last_block = 4 if head == "aspp" else blocks or 7
    cascade_grid = CASCADE_MULTI_GRID if head == "cascade" else None
    form = V3[layout].replaced(width, multi_grid=tuple(multi_grid or ()) or cascade_grid)
    stride = form.output_stride if output_stride is None else output_stride
    check_output_stride(stride, last_block)
    net = build_backbone(backbone, layout, form, stride, blocks=last_block, aux=aux, width=width)
    layers: list[nn.Module] = [form.aspp(net.out_channels, stride)] if head == "aspp" else []
    channels = form.channels if head == "aspp" else net.out_channels
    classifier = nn.Sequential(*layers, *form.last_layers(channels, num_classes))
    auxiliary = FCNHead(net.aux_channels, num_classes) if isinstance(net, ResNet) and aux else None
    model = DeepLabV3(net, classifier, auxiliary)
    model.align_corners = form.align_corners
    form.set_momentum(model)
    return model


def _check_head(head: str, blocks: int | None, layout: str, backbone: str) -> None:
    if head == "cascade" and layout != "paper":
        raise ValueError(f"head='cascade' belongs to layout='paper', got layout={layout!r}")
    if head == "cascade" and backbone not in UNITS:
        raise ValueError(f"head='cascade' needs a ResNet, got backbone={backbone!r}")
    if blocks is not None and head == "aspp":
        raise ValueError("blocks belongs to head='cascade'; ASPP follows block 4")
    if blocks is not None and blocks not in (4, 5, 6, 7):
        raise ValueError(f"blocks must be 4, 5, 6 or 7, got {blocks!r}")
