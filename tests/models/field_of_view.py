"""Measures the field of view of a network's output pixel: the pixels with a nonzero gradient."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from atrousx.models.backbones.vgg import DensePool2x2


class _Mean(nn.Module):
    """Replaces a max-pooling by an average: the gradient of a maximum reaches only the largest
    value."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(self.pool, DensePool2x2):
            kernel, stride, rate = 2, 1, self.pool.rate
            before = rate // 2
            input = F.pad(input, (before, rate - before, before, rate - before))
            padding = 0
        else:
            assert isinstance(self.pool, nn.MaxPool2d)
            kernel, stride, rate = cast(int, self.pool.kernel_size), cast(int, self.pool.stride), 1
            padding = cast(int, self.pool.padding)
        ones = torch.ones(1, 1, kernel, kernel, dtype=input.dtype)
        return F.conv2d(input, ones, stride=stride, padding=padding, dilation=rate)


def field_of_view(network: nn.Sequential, extent: int, centre_only: bool) -> tuple[int, int]:
    """Returns height and width of the field of view of the middle output pixel, in one channel.

    Only the geometry of ``network`` matters, so it may be on the meta device. It is changed: every
    convolution gets one channel and positive taps. With ``centre_only`` the 3x3 convolutions before
    the classifier keep only their centre tap, so that they do not widen the field.
    """
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, (nn.MaxPool2d, DensePool2x2)):
                parent.register_module(name, _Mean(child))
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            taps = torch.ones(1, 1, *module.kernel_size, dtype=torch.float64)
            if centre_only and name.startswith("0."):
                taps = torch.zeros_like(taps)
                taps[..., module.kernel_size[0] // 2, module.kernel_size[1] // 2] = 1
            module.weight = nn.Parameter(taps)
            module.bias = None
    image = torch.ones(1, 1, extent, extent, dtype=torch.float64, requires_grad=True)
    output = network.eval()(image)
    middle = output[0, 0, output.shape[2] // 2, output.shape[3] // 2]
    (gradient,) = torch.autograd.grad(middle, image)
    seen = gradient[0, 0].nonzero()
    spans = seen.amax(0) - seen.amin(0) + 1
    # If the field touched the border, it would be larger on a larger image.
    assert seen.amin() > 0
    assert seen.amax() < extent - 1
    return int(spans[0]), int(spans[1])
