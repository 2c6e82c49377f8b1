"""The three passes of a convolution and the fused forward, by atrousx's kernels and by PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .._library import is_gpu
from .algorithm import current_points
from .geometry import FORWARD, FUSED, GRAD_INPUT, Operands, Options

_forward = torch.ops.atrousx.atrous_conv2d.default
_fused = torch.ops.atrousx._atrous_conv2d_fused.default
_backward_input = torch.ops.atrousx._atrous_conv2d_backward_input.default
_backward_weight = torch.ops.atrousx._atrous_conv2d_backward_weight.default
_pack_weight = torch.ops.atrousx._atrous_conv2d_pack_weight.default
_torch_backward = torch.ops.aten.convolution_backward.default

Call = Callable[[], Tensor]


def convolve_natively(
    input: Tensor, weight: Tensor, bias: Tensor | None, options: Options
) -> Tensor:
    """Convolves by atrousx's kernels, without autograd: the caller provides the gradient."""
    with torch._C._AutoDispatchBelowAutograd():
        output: Tensor = _forward(input, weight, bias, *options)
    return output


def convolve_by_torch(
    input: Tensor, weight: Tensor, bias: Tensor | None, options: Options
) -> Tensor:
    input, padding = _padded(input, options.sides)
    return F.conv2d(input, weight, bias, options.stride, padding, options.dilation, options.groups)


def _padded(input: Tensor, sides: tuple[int, int, int, int]) -> tuple[Tensor, tuple[int, int]]:
    """Returns a map and a padding for PyTorch's convolution, which pads both sides equally."""
    top, left, bottom, right = sides
    if (top, left) == (bottom, right):
        return input, (top, left)
    return F.pad(input, (left, right, top, bottom)), (0, 0)


def gradient_of_input(operands: Operands, options: Options) -> Tensor:
    input, weight, _, grad, _ = operands
    gradient: Tensor = _backward_input(grad, weight, input.shape, *options)
    return gradient


def gradient_of_weight(operands: Operands, options: Options) -> Tensor:
    input, weight, _, grad, _ = operands
    gradient: Tensor = _backward_weight(grad, input, weight.shape, *options)
    return gradient


def gradients_by_torch(
    operands: Operands, options: Options, of_input: bool, of_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Computes the requested gradients of input and weight by PyTorch; the others are None."""
    input, weight, _, grad, _ = operands
    padded, padding = _padded(input, options.sides)
    conv = (list(options.stride), list(padding), list(options.dilation), False, [0, 0])
    mask = [of_input, of_weight, False]
    to_input, to_weight, _ = _torch_backward(
        grad, padded, weight, None, *conv, options.groups, mask
    )
    if of_input and padded is not input:
        top, left, _, _ = options.sides
        to_input = to_input.narrow(2, top, input.shape[2]).narrow(3, left, input.shape[3])
    return to_input, to_weight


def native_pass(pass_: str, operands: Operands, options: Options, ending: str) -> Call:
    """Returns a function that computes a pass by atrousx's kernels.

    Work that many calls share, such as packing, is done before the function is returned.
    """
    if pass_ == FORWARD:
        return lambda: convolve_natively(*operands[:3], options)
    if pass_ == FUSED:
        rest = (operands.residual, "relu" in ending, *options, _packed(operands, options))
        return lambda: _fused(*operands[:3], *rest)
    if pass_ == GRAD_INPUT:
        return lambda: gradient_of_input(operands, options)
    return lambda: gradient_of_weight(operands, options)


def torch_pass(pass_: str, operands: Operands, options: Options, ending: str) -> Call:
    """Returns a function that computes a pass by PyTorch's convolution."""
    if pass_ == FORWARD:
        return lambda: convolve_by_torch(*operands[:3], options)
    if pass_ == FUSED:
        return lambda: _finished(convolve_by_torch(*operands[:3], options), operands, ending)
    of_input = pass_ == GRAD_INPUT

    def gradient() -> Tensor:
        both = gradients_by_torch(operands, options, of_input, not of_input)
        found = both[0] if of_input else both[1]
        assert found is not None
        return found

    return gradient


def _finished(output: Tensor, operands: Operands, ending: str) -> Tensor:
    if operands.residual is not None:
        output = output.add_(operands.residual)
    return output.relu_() if "relu" in ending else output


def _packed(operands: Operands, options: Options) -> Tensor | None:
    """Returns the weight packed as ``optimize`` packs it on the CPU; None on a GPU."""
    input, weight, *_ = operands
    if is_gpu(input):
        return None
    stride, sides, dilation, groups, _ = options
    conv = (input.shape, weight.shape, stride, sides, dilation)
    points = current_points(conv, True, input.dtype)
    packed: Tensor = _pack_weight(weight, 1 if points else groups, points)
    return packed
