"""Changes the output stride of a trained DeepLab: trades strides for rates, keeps weights."""

from __future__ import annotations

from typing import TypeVar

from ..nn import ASPP
from .backbones.geometry import apply_plan, plan_output_stride, scaled_rate
from .backbones.resnet import ResNet
from .deeplab_v3 import DeepLabV3
from .deeplab_v3plus import DeepLabV3Plus
from .forms import check_output_stride

Model = TypeVar("Model", bound=DeepLabV3 | DeepLabV3Plus)


def set_output_stride(model: Model, output_stride: int) -> Model:
    r"""Makes the features of a DeepLab v3 or v3+ denser or sparser, in place and without copies.

    The weights do not change. A stride that is removed doubles the atrous rates of all later
    layers. A stride that is restored halves them. The denser features contain the sparser ones:

    .. math:: F_{8}(x)_{n, c, 2i, 2j} = F_{16}(x)_{n, c, i, j}

    For the backbone this holds up to rounding. The rates of ASPP are scaled too, but its image
    pooling averages over the denser map. The first unit of a stage that loses its stride keeps its
    rate, because its input did not become denser; the equation requires this. A model *built* with
    ``layout="paper"`` for the other output stride differs: there the first unit has the rate of its
    stage.

    Args:
        model: a model of :func:`deeplab_v3` or :func:`deeplab_v3plus`, in any form.
        output_stride: as in :func:`deeplab_v3`.

    Returns:
        The same model, for chaining.

    Raises:
        TypeError: ``model`` is not a DeepLab v3 or v3+ of this package.
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
    if not isinstance(model, (DeepLabV3, DeepLabV3Plus)):
        raise TypeError(f"model must be a DeepLabV3 or a DeepLabV3Plus, got {type(model).__name__}")
    net = model.backbone
    check_output_stride(output_stride, len(net.stages()) if isinstance(net, ResNet) else 4)
    plan, factor = plan_output_stride(net, output_stride)
    pyramids = [module for module in model.modules() if isinstance(module, ASPP)]
    rates = [[scaled_rate(rate, factor) for rate in aspp.atrous_rates] for aspp in pyramids]
    # All rates are computed before the first change, so an error leaves the model unchanged.
    apply_plan(plan)
    for aspp, new in zip(pyramids, rates, strict=True):
        aspp.atrous_rates = new
    return model
