"""Batch normalisation that stays frozen when its model is put in training mode."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from typing_extensions import Self


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """A ``torch.nn.BatchNorm2d`` that is always in evaluation mode, ``train()`` or not."""

    def train(self, mode: bool = True) -> Self:
        return super().train(False)


def freeze_bn(module: nn.Module) -> nn.Module:
    r"""Freezes every batch normalisation of a module for good: in place, nothing is copied.

    .. math:: y = \gamma \, (x - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta

    with the running statistics :math:`\mu, \sigma^2` and the parameters :math:`\gamma, \beta` as
    they are: ``model.train()`` does not bring batch statistics back, and the parameters take no
    gradient. Keys and values of the ``state_dict`` stay. In the third paper this begins the second
    half of the training; in the second paper's ResNet it holds from the start.

    Args:
        module: any module; its ``torch.nn.BatchNorm2d`` and ``SyncBatchNorm`` layers are frozen.

    Returns:
        The same module, for chaining.

    Raises:
        TypeError: ``module`` is not a ``torch.nn.Module``.

    Source: arXiv:1706.05587 section 4.1, arXiv:1606.00915 section 4.1.

    Example:
        >>> import torch
        >>> from atrousx.models import freeze_bn
        >>> layer = freeze_bn(torch.nn.Sequential(torch.nn.BatchNorm2d(3))).train()[0]
        >>> layer.training, layer.weight.requires_grad
        (False, False)
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    for layer in module.modules():
        if isinstance(layer, (nn.BatchNorm2d, nn.SyncBatchNorm)):
            # The class alone changes: the object, its hooks and whoever holds it stay the same.
            layer.__class__ = FrozenBatchNorm2d
            layer.eval().requires_grad_(False)
    return module
