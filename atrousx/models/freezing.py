"""Batch normalisation that stays frozen when its model is set to training mode."""

from __future__ import annotations

from torch import nn

from ..nn.frozen_batch_norm import FrozenBatchNorm2d


def freeze_bn(module: nn.Module) -> nn.Module:
    r"""Freezes every batch normalisation of a module permanently, in place and without copies.

    .. math:: y = \gamma \, (x - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta

    The running statistics :math:`\mu, \sigma^2` and the parameters :math:`\gamma, \beta` keep their
    present values. ``model.train()`` does not restore batch statistics, and the parameters get no
    gradient. ``SyncBatchNorm.convert_sync_batchnorm`` leaves frozen layers alone. Keys and values
    of the ``state_dict`` stay the same. The third paper freezes at the start of the second half of
    training. The second paper's ResNet is frozen from the start.

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
            # Only the class changes, so the layer's hooks and all references to it stay valid.
            layer.__class__ = FrozenBatchNorm2d  # type: ignore[assignment]
            layer.eval().requires_grad_(False)
    return module
