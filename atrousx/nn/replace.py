"""Replaces the convolutions of an existing model by atrousx's."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from .atrous_conv2d import AtrousConv2d, why_not_served


def replace_convs(module: nn.Module) -> nn.Module:
    """Replaces every ``torch.nn.Conv2d`` of a module by an ``AtrousConv2d``, in place.

    Nothing is copied. Parameters and hooks stay the same objects and ``state_dict`` keys stay the
    same, so an existing optimizer goes on working. A layer that is registered in several places
    stays one layer. Layers that :meth:`AtrousConv2d.from_conv` refuses do not change: subclasses,
    parametrised or lazy layers, and other kinds of convolution. Layers that are no registered
    submodules, for instance in a plain list, do not change either.

    Args:
        module: any module. If it is itself a ``torch.nn.Conv2d``, the function returns its
            replacement.

    Returns:
        The same module, for chaining.

    Raises:
        TypeError: ``module`` is not a ``torch.nn.Module``.

    Example:
        >>> import torch, atrousx
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU())
        >>> atrousx.replace_convs(net)
        Sequential(
          (0): AtrousConv2d(3, 4, kernel_size=(3, 3), stride=(1, 1))
          (1): ReLU()
        )
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    replaced: dict[nn.Module | None, nn.Module] = {}
    for layer in list(module.modules()):
        if type(layer) is nn.Conv2d and why_not_served(layer) is None:
            replaced[layer] = AtrousConv2d.from_conv(layer)
    return swap(module, replaced)


def swap(module: nn.Module, replaced: Mapping[nn.Module | None, nn.Module]) -> nn.Module:
    """Replaces layers of a module wherever they are registered, and returns the module."""
    for parent in list(module.modules()):
        # Not named_children(): it lists a layer registered twice under one name only.
        for name, child in list(parent._modules.items()):
            if child in replaced:
                parent.register_module(name, replaced[child])
    return replaced.get(module, module)
