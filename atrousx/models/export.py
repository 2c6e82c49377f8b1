"""Converts models to PyTorch's own layers, for exporters that know no others."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TypeVar

from torch import Tensor, nn
from torch.nn import functional as F

from ..inference.fused import FusedASPP, FusedConv2d
from ..nn import AtrousConv2d

Module = TypeVar("Module", bound=nn.Module)


def interpolate_bilinear(
    input: Tensor,
    size: int | Sequence[int] | None = None,
    scale_factor: float | Sequence[float] | None = None,
    align_corners: bool = False,
) -> Tensor:
    """Calls PyTorch's bilinear resampling with the arguments of :func:`ops.upsample_bilinear2d`."""
    return F.interpolate(input, size, scale_factor, mode="bilinear", align_corners=align_corners)


def shared_copy(model: Module) -> Module:
    """Returns a copy of the modules that shares their parameters and buffers."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def to_torch(model: Module) -> Module:
    r"""Returns a copy of a model that uses only PyTorch's layers and shares the model's weights.

    Every :class:`atrousx.AtrousConv2d` becomes a ``torch.nn.Conv2d``. Every bilinear resampling
    becomes ``torch.nn.functional.interpolate``. ``torch.onnx.export`` and other tools can translate
    these.

    .. math:: \mathrm{to\_torch}(f)(x) = f(x) \text{ up to rounding}

    Args:
        model: any module: a model of this package, or one that :func:`atrousx.replace_convs`
            changed.

    Returns:
        The copy. Its parameters and buffers are the same objects, and its keys are the same.

    Raises:
        TypeError: ``model`` is not a ``torch.nn.Module``.
        ValueError: ``model`` is a result of :func:`atrousx.optimize`.

    Source: ``torch.nn.Conv2d`` and ``torch.nn.functional.interpolate``; atrousx's layers give the
    same results.

    Example:
        >>> import torch, atrousx
        >>> model = atrousx.models.deeplab_v3(num_classes=2).eval()
        >>> twin = atrousx.models.to_torch(model)
        >>> type(twin.backbone.conv1), twin.backbone.conv1.weight is model.backbone.conv1.weight
        (<class 'torch.nn.modules.conv.Conv2d'>, True)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if any(isinstance(module, (FusedConv2d, FusedASPP)) for module in model.modules()):
        raise ValueError(
            "model is a result of atrousx.optimize, whose layers PyTorch lacks: "
            "convert the model that was optimized"
        )
    twin = shared_copy(model)
    for module in twin.modules():
        if isinstance(module, AtrousConv2d):
            # An AtrousConv2d differs from a Conv2d only in how it computes.
            module.__class__ = nn.Conv2d  # type: ignore[assignment]
        if hasattr(type(module), "resample"):
            setattr(module, "resample", interpolate_bilinear)  # noqa: B010
    return twin
