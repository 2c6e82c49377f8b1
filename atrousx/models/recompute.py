"""Training that computes cheap results again in the backward pass, in place of keeping them."""

from __future__ import annotations

from torch import nn

from .backbones.resnet import ResNet


def recompute_activations(module: nn.Module, recompute: bool = True) -> nn.Module:
    """Makes the ResNets in a module keep only their convolutions' results, in place.

    The backward pass of a batch normalisation needs its input, and that of the next convolution
    needs its output. So training keeps two maps for each convolution. After this call it keeps one,
    and computes the other again, one residual stage at a time. Results, gradients and running
    statistics are the same bits. Training needs less memory and somewhat more time. Evaluation does
    not change, and ``torch.compile`` decides by itself what it keeps.

    Args:
        module: a DeepLab with a ResNet, or any module that contains one of this package.
        recompute: False keeps all maps again.

    Returns:
        The same module, for chaining.

    Raises:
        TypeError: ``module`` is not a ``torch.nn.Module``.
        ValueError: there is no ResNet of this package in it.

    Source: training with sublinear memory, arXiv:1604.06174.

    Example:
        >>> import torch, atrousx
        >>> model = atrousx.models.deeplab_v3(num_classes=2, width=0.1)
        >>> model = atrousx.models.recompute_activations(model)
        >>> loss = model(torch.rand(2, 3, 33, 33), torch.zeros(2, 33, 33, dtype=torch.int64))
        >>> loss.backward()
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    found = [layer for layer in module.modules() if isinstance(layer, ResNet)]
    if not found:
        raise ValueError("module must contain a ResNet of atrousx, only its stages are recomputed")
    for layer in found:
        layer.recompute = recompute
    return module
