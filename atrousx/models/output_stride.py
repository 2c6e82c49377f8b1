"""Another output stride for a trained DeepLab v3: strides against atrous rates, weights kept."""

from __future__ import annotations

from fractions import Fraction
from typing import cast

from torch import nn

from ..nn import ASPP, AtrousConv2d
from .deeplab_v3 import DeepLabV3, check_output_stride
from .resnet import STEM_STRIDE, Bottleneck, ResNet


def set_output_stride(model: DeepLabV3, output_stride: int) -> DeepLabV3:
    r"""Makes the features of a DeepLab v3 denser or sparser: in place, nothing is copied.

    The weights stay. Strides that go away double the atrous rate of all that follows; strides that
    come back halve it. The denser features contain the sparser ones:

    .. math:: F_{8}(x)_{n, c, 2i, 2j} = F_{16}(x)_{n, c, i, j}

    exactly up to rounding, for the backbone; ASPP's rates are scaled with it, while its image
    pooling averages over the denser map. The first unit of a stage that lost its stride keeps its
    rate, since its input did not become denser: this law asks for it, and a model *built* with
    ``layout="paper"`` for the other output stride has the stage's rate there.

    Args:
        model: of :func:`deeplab_v3`, any layout and head.
        output_stride: as there.

    Returns:
        The same model, for chaining.

    Raises:
        TypeError: ``model`` is not a DeepLab v3 of this package.
        ValueError: the blocks do not reach that output stride, or a rate cannot be halved.

    Source: arXiv:1706.05587 section 3.1; trained at 16, evaluated at 8 in section 4.

    Example:
        >>> import torch, atrousx
        >>> model = atrousx.models.deeplab_v3(output_stride=16).eval()
        >>> image = torch.rand(1, 3, 65, 65)
        >>> sparse = model.backbone(image)["out"]
        >>> dense = atrousx.models.set_output_stride(model, 8).backbone(image)["out"]
        >>> torch.allclose(dense[..., ::2, ::2], sparse, rtol=1e-3, atol=1e-3)
        True
    """
    if not isinstance(model, DeepLabV3):
        raise TypeError(f"model must be a DeepLabV3, got {type(model).__name__}")
    stages = model.backbone.stages()
    check_output_stride(output_stride, len(stages))
    plan, factor = _plan(model.backbone, output_stride)
    rates = []
    for module in model.classifier.modules():
        if isinstance(module, ASPP):
            branches = [cast(nn.Sequential, branch) for branch in module.convs[1:-1]]
            convs = [cast(AtrousConv2d, branch[0]) for branch in branches]
            rates += [(conv, _scaled(conv.dilation[0], factor)) for conv in convs]
    # Nothing is changed before everything is known to fit.
    for unit, stride, rate in plan:
        unit.set_geometry(stride, rate)
    for conv, rate in rates:
        conv.padding = conv.dilation = (rate, rate)
    return model


def _plan(
    backbone: ResNet, output_stride: int
) -> tuple[list[tuple[Bottleneck, int, int]], Fraction]:
    """Every unit's new stride and rate, and how much denser the result becomes."""
    plan, reached, factor = [], STEM_STRIDE, Fraction(1)
    for index, stage in enumerate(backbone.stages()):
        for place, module in enumerate(stage):
            unit = cast(Bottleneck, module)
            # The stride acts with the first unit's 3x3 or before it: it sees the input's density.
            before, stride = factor, 1
            if place == 0:
                stride = 2 if index and reached * 2 <= output_stride else 1
                reached *= stride
                factor *= Fraction(unit.stride, stride)
            density = factor if unit.stride_first else before
            plan.append((unit, stride, _scaled(unit.rate, density)))
    return plan, factor


def _scaled(rate: int, factor: Fraction) -> int:
    scaled = rate * factor
    if scaled.denominator != 1:
        raise ValueError(
            f"output_stride would need the atrous rate {rate} times {factor}, which is not whole"
        )
    return scaled.numerator
