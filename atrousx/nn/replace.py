"""Swapping the convolutions of an existing model for atrousx's."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from .atrous_conv2d import AtrousConv2d, why_not_served


def replace_convs(module: nn.Module) -> nn.Module:
    """Swaps every ``torch.nn.Conv2d`` of a module in place; weights are shared, nothing is copied.

    Each becomes an ``AtrousConv2d``. Parameters, hooks and ``state_dict`` keys stay the same
    objects and names, so an optimizer made before goes on working. A layer registered in several
    places stays one layer. What :meth:`AtrousConv2d.from_conv` refuses (subclasses, parametrised
    or lazy layers, other kinds of convolution) is left alone, and so are layers that the module
    holds outside its registered submodules, in a plain list for instance.

    Args:
        module: any module; when it is itself a ``torch.nn.Conv2d``, its replacement is returned.

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
    """Puts other layers in the place of some inside a module, everywhere; returns the module."""
    for parent in list(module.modules()):
        # Not named_children(): it lists a layer registered twice under one name only.
        for name, child in list(parent._modules.items()):
            if child in replaced:
                parent.register_module(name, replaced[child])
    return replaced.get(module, module)
