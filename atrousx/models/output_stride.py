"""Changes the output stride of a trained DeepLab v3: trades strides for rates, keeps weights."""

from __future__ import annotations

from fractions import Fraction
from typing import cast

from torch import nn

from ..nn import ASPP, AtrousConv2d
from .backbones.resnet import STEM_STRIDE, Bottleneck, ResNet
from .deeplab_v3 import DeepLabV3, check_output_stride


def set_output_stride(model: DeepLabV3, output_stride: int) -> DeepLabV3:
    r"""Makes the features of a DeepLab v3 denser or sparser, in place and without copies.

    The weights do not change. A stride that is removed doubles the atrous rates of all later
    layers. A stride that is restored halves them. The denser features contain the sparser ones:

    .. math:: F_{8}(x)_{n, c, 2i, 2j} = F_{16}(x)_{n, c, i, j}

    For the backbone this holds up to rounding. The rates of ASPP are scaled too, but its image
    pooling averages over the denser map. The first unit of a stage that loses its stride keeps its
    rate, because its input did not become denser; the equation requires this. A model *built* with
    ``layout="paper"`` for the other output stride differs: there the first unit has the rate of its
    stage.

    Args:
        model: a model of :func:`deeplab_v3`, with any layout and head.
        output_stride: as in :func:`deeplab_v3`.

    Returns:
        The same model, for chaining.

    Raises:
        TypeError: ``model`` is not a DeepLab v3 of this package.
        ValueError: the blocks do not reach that output stride, or a rate cannot be halved.

    Source: arXiv:1706.05587, section 3.1. Section 4 trains at 16 and evaluates at 8.

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
    # All rates are computed before the first change, so an error leaves the model unchanged.
    for unit, stride, rate in plan:
        unit.set_geometry(stride, rate)
    for conv, rate in rates:
        conv.padding = conv.dilation = (rate, rate)
    return model


def _plan(
    backbone: ResNet, output_stride: int
) -> tuple[list[tuple[Bottleneck, int, int]], Fraction]:
    """Returns each unit's new stride and rate, and how much denser the result becomes."""
    plan, reached, factor = [], STEM_STRIDE, Fraction(1)
    for index, stage in enumerate(backbone.stages()):
        for place, module in enumerate(stage):
            unit = cast(Bottleneck, module)
            # With the stride on the 3x3, the 3x3 still reads a map as dense as the unit's input.
            # With the stride on the first 1x1, it reads a map as dense as the unit's result.
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
