"""Preparing a trained model for inference: normalisations folded, stores fused, channels_last."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from .aspp import ASPP, ImagePooling, PooledBatchNorm2d
from .atrous_conv2d import AtrousConv2d, why_not_served
from .fused import FusedASPP, FusedBottleneck, FusedConv2d


def optimize(model: nn.Module, *, inplace: bool = False) -> nn.Module:
    r"""Makes a faster model for inference from a trained one, the same function up to rounding.

    .. math::
        \mathrm{BN}(w * x + b) = (s w) * x + s (b - \mu) + \beta, \qquad
        s = \gamma / \sqrt{\sigma^2 + \epsilon}

    - A batch normalisation behind a convolution in an ``nn.Sequential`` (or a subclass without a
      ``forward`` of its own), and in atrousx's ResNets and ASPP, is folded into the convolution.
    - A ReLU behind it, and the addition of a residual unit's shortcut, happen where the convolution
      stores its result.
    - :class:`atrousx.ASPP`'s branches become one :func:`atrousx.ops.multi_rate_conv2d`.
    - Every ``nn.Conv2d`` becomes an ``AtrousConv2d``, its filters in channels_last; the model's
      inputs are brought to channels_last.

    Layers with forward hooks keep their place and are not folded; other models' own ways of calling
    layers are not looked into: there, convolutions are replaced and normalisations stay.

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
    result = _optimized(model if inplace else copy.deepcopy(model), {})
    result.register_forward_pre_hook(_to_channels_last)
    return result.eval()


def _to_channels_last(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        value.contiguous(memory_format=torch.channels_last)
        if isinstance(value, Tensor) and value.dim() == 4
        else value
        for value in inputs
    )


def _optimized(module: nn.Module, done: dict[nn.Module, nn.Module]) -> nn.Module:
    """What takes the module's place: itself, changed, or another. A shared module stays one."""
    if module not in done:
        replacement = _whole(module, done)
        if replacement is None:
            if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
                _fold_chain(module)
            for name, child in list(module._modules.items()):
                if child is not None:
                    module.register_module(name, _optimized(child, done))
            replacement = module
        done[module] = replacement
    return done[module]


def _whole(module: nn.Module, done: dict[nn.Module, nn.Module]) -> nn.Module | None:
    """The replacement of a module that is known as a whole, None for any other."""
    # The models are built on the layers: their page imports this package.
    from ..models.resnet import Bottleneck, ResNet

    if isinstance(module, FusedConv2d):
        return module
    if type(module) in (nn.Conv2d, AtrousConv2d):
        return FusedConv2d.make(module) if why_not_served(module) is None else None  # type: ignore[arg-type]
    if type(module) is ASPP and not _hooked(module):
        return _fuse_aspp(module)
    if type(module) is Bottleneck and not _hooked(module, module.relu):
        pairs = [(getattr(module, f"conv{i}"), getattr(module, f"bn{i}")) for i in (1, 2, 3)]
        if all(_foldable(conv, norm) for conv, norm in pairs):
            convs = [FusedConv2d.make(conv, norm, relu=True) for conv, norm in pairs]
            down = module.downsample
            shortcut = None if down is None else _optimized(down, done)
            return FusedBottleneck(convs, shortcut, module.stride)
    if type(module) is ResNet and _foldable(module.conv1, module.bn1) and not _hooked(module.relu):
        module.conv1 = FusedConv2d.make(module.conv1, module.bn1, relu=True)
        module.bn1 = module.relu = nn.Identity()  # type: ignore[assignment]
    return None


def _hooked(*modules: nn.Module) -> bool:
    return any(m._forward_hooks or m._forward_pre_hooks for m in modules)


def _foldable(conv: nn.Module, norm: nn.Module) -> bool:
    return (
        type(conv) in (nn.Conv2d, AtrousConv2d)
        and why_not_served(conv) is None
        and type(norm) in (nn.BatchNorm2d, PooledBatchNorm2d)
        and isinstance(norm, nn.BatchNorm2d)
        and norm.running_mean is not None
        and not _hooked(conv, norm)
    )


def _fold_chain(chain: nn.Sequential) -> None:
    """Folds every convolution's followers into it; they leave an identity in their place."""
    layers = list(chain._modules.items())
    for index, (name, conv) in enumerate(layers):
        if conv is None or type(conv) not in (nn.Conv2d, AtrousConv2d) or _hooked(conv):
            continue
        if why_not_served(conv) is not None:
            continue
        followers = [layer for _, layer in layers[index + 1 : index + 3]]
        norm = followers[0] if followers and _foldable(conv, followers[0]) else None
        rest = followers[0 if norm is None else 1 :]
        relu = bool(rest) and type(rest[0]) is nn.ReLU and not _hooked(rest[0])
        chain._modules[name] = FusedConv2d.make(conv, norm, relu)  # type: ignore[arg-type]
        for follower, _ in layers[index + 1 : index + 1 + (norm is not None) + relu]:
            chain._modules[follower] = nn.Identity()


def _unit(layers: nn.Sequential, first: int = 0) -> FusedConv2d | None:
    """Convolution, normalisation and ReLU of a branch in one, None where they are not these."""
    conv, norm, relu = list(layers)[first : first + 3]
    if not _foldable(conv, norm) or type(relu) is not nn.ReLU or _hooked(layers, relu):
        return None
    return FusedConv2d.make(conv, norm, relu=True)  # type: ignore[arg-type]


def _fuse_aspp(aspp: ASPP) -> FusedASPP | None:
    *branches, pooling = aspp.convs
    units = [_unit(branch) for branch in branches]  # type: ignore[arg-type]
    project = _unit(aspp.project)
    if type(pooling) is not ImagePooling or project is None or None in units:
        return None
    pooled = _unit(pooling, first=1)
    if pooled is None or _hooked(*list(aspp.project)[3:], pooling[0]):
        return None
    return FusedASPP([unit for unit in units if unit is not None], pooled, project)
