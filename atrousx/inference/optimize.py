"""Preparing a trained model for inference: normalisations folded, stores fused, channels_last."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..nn.atrous_conv2d import AtrousConv2d, hooked, why_not_served
from ..nn.replace import swap
from .chains import Calls, is_aspp, is_norm, is_relu
from .fused import FusedASPP, FusedConv2d
from .rewritten import rewrite

CONVS = (nn.Conv2d, AtrousConv2d)


def optimize(model: nn.Module, *, inplace: bool = False) -> nn.Module:
    r"""Returns a faster copy of a trained model for inference; ``inplace=True`` changes the model.

    It is the same function up to rounding:

    .. math::
        \mathrm{BN}(w * x + b) = (s w) * x + s (b - \mu) + \beta, \qquad
        s = \gamma / \sqrt{\sigma^2 + \epsilon}

    - A batch normalisation behind a convolution is folded into it, in any model: which layer's
      result goes where is read from traces of the modules' own forwards (``torch.fx``).
    - A ReLU behind it, and the addition of a residual unit's shortcut, happen where the convolution
      stores its result. A forward that consists of its layers, sums and ReLU alone is written anew
      for it; the module keeps its class, attributes and other methods.
    - :class:`atrousx.ASPP`'s and torchvision's branches become one
      :func:`atrousx.ops.multi_rate_conv2d`.
    - Every ``nn.Conv2d`` becomes an ``AtrousConv2d``, its filters in channels_last; the model's
      inputs are brought to channels_last. Depthwise layers leave a map's format as it is.
    - On the CPU a layer that atrousx's kernels compute keeps its filters as they read them, too,
      from its first call on: as much memory again, and a tenth of a wide layer's time.
    - There 3x3 filters in float32 whose kernels take fewer products than live taps (see
      :func:`atrousx.ops.atrous_conv2d`) are transformed once, not at every call: up to 16/9 of the
      filters' memory.

    Results follow the weights, however these are changed. A change through ``.data``, NumPy or
    shared memory shows in the weights' bytes alone: from when somebody asks a layer for its
    weight (``parameters()`` and ``state_dict()`` do) until nobody else has it, each call reads it
    once more.

    Left as they are: layers with hooks, a convolution whose result has other uses, too, or whose
    normalisation is not always the same, and whatever a forward does that cannot be traced (its
    submodules are looked into all the same) or that depends on optional arguments.

    The result is for inference: it must not be trained (its weights have no gradient, ``train()``
    does not bring the normalisations back) and its ``state_dict`` has other keys. Load weights
    before optimizing, and keep the original for training. Inputs may require a gradient.

    Args:
        model: any module, in evaluation mode throughout.
        inplace: changes ``model`` itself and returns it, where it would otherwise be copied.

    Returns:
        The optimized model.

    Raises:
        TypeError: ``model`` is not a ``torch.nn.Module``.
        ValueError: a part of ``model`` is in training mode.

    Example:
        >>> import torch, atrousx
        >>> model = atrousx.models.deeplab_v3(num_classes=2).eval()
        >>> fast = atrousx.optimize(model)
        >>> image = torch.rand(1, 3, 33, 33)
        >>> torch.allclose(fast(image)["out"], model(image)["out"], rtol=1e-3, atol=1e-3)
        True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    training = [name or "itself" for name, module in model.named_modules() if module.training]
    if training:
        raise ValueError(
            "model must be in evaluation mode (call model.eval() first), "
            f"got {len(training)} modules in training mode, the first of them {training[0]}"
        )
    result = _fuse(model if inplace else copy.deepcopy(model))
    result.register_forward_pre_hook(_to_channels_last)
    return result.eval()


def _to_channels_last(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        value.contiguous(memory_format=torch.channels_last)
        if isinstance(value, Tensor) and value.dim() == 4
        else value
        for value in inputs
    )


def _fuse(root: nn.Module) -> nn.Module:
    """Whole pyramids first, then chains of layers, then every convolution that is left."""
    pyramids = {m: _fuse_aspp(m) for m in root.modules() if is_aspp(m) and not hooked(m)}
    root = swap(root, {m: fused for m, fused in pyramids.items() if fused is not None})
    replaced: dict[nn.Module | None, nn.Module] = {}
    calls = Calls(root)
    rewritten = set()
    for conv in list(calls.of):
        if not _foldable(conv) or conv in calls.hidden:
            continue
        assert isinstance(conv, nn.Conv2d)
        norm = calls.follower(calls.of[conv], is_norm)
        ends = calls.of[conv if norm is None else norm]
        relu = calls.follower(ends, is_relu)
        chain = calls.chain(conv, ends) if relu is None else None
        clips = relu is not None or (chain is not None and chain.relu)
        replaced[conv] = FusedConv2d.make(conv, cast(nn.BatchNorm2d | None, norm), clips)
        replaced |= {layer: nn.Identity() for layer in (norm, relu) if layer is not None}
        if chain is not None:
            chain.contract()
            rewritten.add(calls.owners[chain.conv.graph])
    for module in rewritten:
        rewrite(module, calls.graphs[module])
    for conv in root.modules():
        if conv not in replaced and type(conv) in CONVS and why_not_served(conv) is None:
            replaced[conv] = FusedConv2d.make(conv)  # type: ignore[arg-type]
    return swap(root, replaced)


def _foldable(conv: nn.Module) -> bool:
    return type(conv) in CONVS and why_not_served(conv) is None and not hooked(conv)


def _unit(layers: Sequence[nn.Module]) -> FusedConv2d | None:
    """Convolution, normalisation and ReLU of a branch in one, None where they are not these."""
    conv, norm, relu = layers
    if not _foldable(conv) or not is_norm(norm) or not is_relu(relu):
        return None
    unit = FusedConv2d.make(conv, norm, relu=True)  # type: ignore[arg-type]
    keeps_size = all(
        p == d * (k // 2)
        for p, d, k in zip(unit.padding, unit.dilation, unit.kernel_size, strict=True)
    )
    plain = unit.groups == 1 and set(unit.stride) == {1} and unit.padding_mode == "zeros"
    return unit if keeps_size and plain and len(set(unit.dilation)) == 1 else None


def _fuse_aspp(aspp: nn.Module) -> FusedASPP | None:
    *branches, pooling, project = [list(part) for part in (*cast(Any, aspp.convs), aspp.project)]
    if hooked(*aspp.modules()) or [len(part) for part in (pooling, project)] != [4, 4]:
        return None
    units = [_unit(part) for part in (*branches, pooling[1:], project[:3])]
    if None in units:
        return None
    *wide, pooled, last = (unit for unit in units if unit is not None)
    return FusedASPP(wide, pooled, last)
