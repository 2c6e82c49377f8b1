"""Prepares a trained model for inference: folded normalisations, fused stores, channels_last."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..nn.atrous_conv2d import AtrousConv2d, hooked, why_not_served
from ..nn.replace import swap
from .chains import Calls, inner_activation, is_aspp, is_norm, is_relu
from .fused import FusedASPP, FusedConv2d
from .rewritten import rewrite

CONVS = (nn.Conv2d, AtrousConv2d)


def optimize(model: nn.Module, *, inplace: bool = False) -> nn.Module:
    r"""Returns a faster copy of a trained model for inference; ``inplace=True`` changes the model.

    The copy computes the same function up to rounding:

    .. math::
        \mathrm{BN}(w * x + b) = (s w) * x + s (b - \mu) + \beta, \qquad
        s = \gamma / \sqrt{\sigma^2 + \epsilon}

    - A batch normalisation after a convolution is folded into the convolution, in any model.
      Traces of the modules' own forwards (``torch.fx``) show which layer uses which result.
    - The convolution's store also applies a ReLU that follows, and adds the shortcut of a residual
      unit. For this, a forward that consists only of its layers, sums and ReLU is rewritten. The
      module keeps its class, attributes and other methods.
    - The branches of :class:`atrousx.ASPP` and of torchvision's ASPP become one call of
      :func:`atrousx.ops.multi_rate_conv2d`.
    - Every ``nn.Conv2d`` becomes an ``AtrousConv2d`` with filters in channels_last, and the model's
      inputs are converted to channels_last. Depthwise layers do not change the format of a map.
    - On the CPU a layer that atrousx's kernels compute also keeps packed filters from its first
      call on. They take as much memory again, up to twice as much in half types, and save a tenth
      of a wide layer's time.
    - On the CPU some 3x3 filters take fewer products than live taps, by minimal filtering
      (Winograd, see :func:`atrousx.ops.atrous_conv2d`). They are transformed once, not at every
      call. The transformed filters take up to 25/9 of the filters' memory in float32, and 8 times
      that memory in half types.

    Results follow the weights, however the weights are changed. A change through ``.data``, NumPy
    or shared memory can be seen only in the weights' bytes. So a layer compares these bytes at
    every call while code outside it may hold the weight. That begins when code asks the layer for
    the weight, as ``parameters()`` and ``state_dict()`` do. It ends when only the layer holds the
    weight.

    These do not change: layers with hooks; a convolution whose result is used elsewhere, too; a
    convolution whose result goes to different normalisations; operations in a forward that cannot
    be traced or that has optional arguments. The submodules of such a forward are still optimized.

    The result is only for inference. Do not train it: its weights have no gradient, and ``train()``
    does not restore the normalisations. Its ``state_dict`` has other keys, so load weights before
    this call, and keep the original for training. Inputs may require a gradient.

    Args:
        model: any module, with all its submodules in evaluation mode.
        inplace: whether to change ``model`` itself and return it, instead of a copy.

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
    """Fuses whole ASPPs first, then chains of layers, then every convolution that is left."""
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
        activation = inner_activation(norm)
        relu = calls.follower(ends, is_relu) if activation is None else None
        chain = calls.chain(conv, ends) if relu is None and activation is None else None
        clips = relu is not None or (chain is not None and chain.relu)
        if activation is not None and is_relu(activation):
            clips, activation = True, None
        replaced[conv] = FusedConv2d.make(conv, cast(nn.BatchNorm2d | None, norm), clips)
        replaced |= {layer: nn.Identity() for layer in (norm, relu) if layer is not None}
        if activation is not None:
            replaced[norm] = activation
        if chain is not None:
            chain.contract()
            rewritten.add(calls.owners[chain.conv.graph])
    for module in rewritten:
        rewrite(module, calls.rewritten(calls.graphs[module]))
    for conv in root.modules():
        if conv not in replaced and type(conv) in CONVS and why_not_served(conv) is None:
            replaced[conv] = FusedConv2d.make(conv)  # type: ignore[arg-type]
    return swap(root, replaced)


def _foldable(conv: nn.Module) -> bool:
    return type(conv) in CONVS and why_not_served(conv) is None and not hooked(conv)


def _unit(layers: Sequence[nn.Module]) -> FusedConv2d | None:
    """Returns a branch's convolution, normalisation and ReLU as one layer, or None if unsuited."""
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
    if last.kernel_size != (1, 1):
        return None  # next to the border a larger filter would meet padding, not the pooled value
    return FusedASPP(wide, pooled, last)
