"""Atrous convolution: the public function, its fake kernels, gradients and autocast rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._derivatives import multilinear, refuse_derivatives, register_derivatives
from .._library import register_autocast
from .._taps import output_size
from ..backend.choice import (
    Backend,
    allows_tf32,
    check_backend,
    get_backend,
    measures,
    needs_torch,
    torch_computes,
)
from ..backend.geometry import Options
from ..backend.passes import convolve_by_torch
from ._check import check_device, check_map, check_operand, check_rank, check_result_size
from ._geometry import Padding, positive_pair, sides_of
from ._kernels import register_fake
from ._measured_conv2d import convolve_measured

_forward = torch.ops.atrousx.atrous_conv2d.default
_fused = torch.ops.atrousx._atrous_conv2d_fused.default
_pack_weight = torch.ops.atrousx._atrous_conv2d_pack_weight.default
_backward_input = torch.ops.atrousx._atrous_conv2d_backward_input.default
_backward_weight = torch.ops.atrousx._atrous_conv2d_backward_weight.default


def atrous_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    backend: Backend | None = None,
) -> Tensor:
    r"""Convolves with a filter whose taps lie ``dilation`` pixels apart, and skips padding.

    .. math::
        y_{n,k,o,p} = b_k + \sum_{c,i,j} w_{k,c,i,j}\;
        x_{n,\,c,\;o s_h - p_h + i d_h,\;p s_w - p_w + j d_w}

    The sum has only the taps whose sample lies on the map. Arguments and results are those of
    ``torch.nn.functional.conv2d``. Gradients are exact to any order. Forward and backward are
    deterministic.

    On CUDA, float32 operands are rounded to TF32 if PyTorch's switch for convolutions says so:
    ``torch.backends.cudnn.conv.fp32_precision``, or its older name
    ``torch.backends.cudnn.allow_tf32``. It is on by default.

    On the CPU, 3x3 filters with stride 1 and many channels use minimal filtering (Winograd) where
    that is faster. It needs fewer products than live taps. In float32 it computes 2x2 outputs,
    which lie the dilation apart, with 16 products instead of 36. With a large dilation, only two,
    three or four pixels in a row may lie the dilation apart. Then it needs 9 products instead of
    16, 25 instead of 49, or 49 instead of 100. In half types it computes 4x4 outputs with 36
    products instead of 144. Live taps are multiplied if an operand is not finite, or if rounding
    errors would be more than twice those of PyTorch's convolution. :func:`atrousx.set_precision`
    can disable minimal filtering.

    All of this describes atrousx's kernels. If ``backend`` selects PyTorch's convolution, padding
    is multiplied, too.

    Args:
        input: ``[N, C, H, W]`` or ``[C, H, W]``, float32, float64, float16 or bfloat16, any
            strides, N may be 0.
        weight: ``[K, C / groups, KH, KW]``, of the dtype and on the device of ``input``.
        bias: ``[K]``, of the dtype and on the device of ``input``.
        stride: pixels between neighbouring outputs, one int or (vertical, horizontal).
        padding: zeros around the map in pixels, one int or (vertical, horizontal). ``"valid"``
            means no padding. ``"same"`` gives an output of the size of the input; it needs stride
            1, and an odd pixel of padding is added below and to the right.
        dilation: pixels between neighbouring taps, one int or (vertical, horizontal).
        groups: the number of groups that channels and outputs are divided into.
        backend: "native" uses atrousx's kernels, "torch" uses PyTorch's convolution. "measure"
            tries both and uses the faster one if atrousx's result is right. "auto" uses the one
            that a measured rule expects to be faster. None uses the backend of the process
            (:func:`atrousx.set_backend`).

    Returns:
        ``[N, K, OH, OW]`` with ``OH = (H + padding - dilation * (KH - 1) - 1) // stride + 1``,
        where ``padding`` counts both sides. It is channels_last if ``input`` or ``weight`` is.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a rank or shape is wrong; the padding is negative; stride, dilation or groups
            are not positive; one of these or a kernel extent is above 2**31 - 1; the map or the
            output is empty; the output is larger than any memory; ``"same"`` is used with a stride;
            or ``backend`` is unknown.
        RuntimeError: the tensors have different dtypes or devices.

    Source:
        Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017.

    Example:
        >>> import torch, atrousx
        >>> row = torch.tensor([[[[1.0, 2.0, 3.0, 4.0, 5.0]]]])
        >>> taps = torch.tensor([[[[1.0, 10.0, 100.0]]]])
        >>> atrousx.ops.atrous_conv2d(row, taps, padding=(0, 2), dilation=2)
        tensor([[[[310., 420., 531.,  42.,  53.]]]])
    """
    batched = check_map("input", input)
    check_operand("weight", weight, "input", input)
    if bias is not None:
        check_operand("bias", bias, "input", input)
    check_rank("weight", weight, 4, "[K, C / groups, KH, KW]")
    strides = positive_pair("stride", stride)
    dilations = positive_pair("dilation", dilation)
    sides = sides_of(padding, weight.shape[2:], strides, dilations)
    _check_channels(input, weight, bias, groups)
    size = input.shape[-2:]
    if any(extent == 0 for extent in size):
        raise ValueError(f"input must have a non-empty H and W, got shape {tuple(input.shape)}")
    extents = output_size(size, weight.shape[2:], strides, sides, dilations)
    if any(extent <= 0 for extent in extents):
        raise ValueError(
            f"the output would be empty: input is {tuple(size)} padded by {sides} (top, left, "
            f"bottom, right), less than the {tuple(weight.shape[2:])} taps of weight span at "
            f"dilation {dilations}"
        )
    check_result_size((*input.shape[:-3], weight.shape[0], *extents))
    if backend is not None:
        check_backend("backend", backend)
    chosen = backend or get_backend()
    if not needs_torch(chosen, input):
        check_device("input", input)
    batch = input if batched else input.unsqueeze(0)
    options = Options(strides, sides, dilations, groups, allows_tf32(input))
    result: Tensor
    if measures(chosen, input):
        result = convolve_measured(batch, weight, bias, options)
    elif torch_computes(chosen, input, weight, bias, strides, sides, dilations):
        result = convolve_by_torch(batch, weight, bias, options)
    else:
        result = _convolve(batch, weight, bias, *options)
    return result if batched else result.squeeze(0)


def _check_channels(input: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> None:
    if isinstance(groups, bool) or not isinstance(groups, (int, torch.SymInt)):
        raise TypeError(f"groups must be an int, got {groups!r}")
    if groups <= 0:
        raise ValueError(f"groups must be positive, got {groups}")
    outputs, channels = weight.shape[0], input.shape[-3]
    if outputs == 0 or any(extent == 0 for extent in weight.shape[2:]):
        raise ValueError(
            f"weight must have non-empty K, KH and KW, got shape {tuple(weight.shape)}"
        )
    if outputs % groups != 0:
        raise ValueError(
            f"weight must have a number of outputs that groups ({groups}) divides, "
            f"got shape {tuple(weight.shape)}"
        )
    if channels != weight.shape[1] * groups:
        raise ValueError(
            f"weight of shape {tuple(weight.shape)} with groups={groups} needs an input of "
            f"{weight.shape[1] * groups} channels, got input of shape {tuple(input.shape)}"
        )
    if bias is not None and (bias.dim() != 1 or bias.shape[0] != outputs):
        raise ValueError(
            f"bias must have shape ({outputs},), one per output, got {tuple(bias.shape)}"
        )


def _empty(size: Sequence[int], first: Tensor, second: Tensor) -> Tensor:
    """Returns a new tensor, channels_last if an operand is, as in PyTorch's convolution."""
    formats = [torch._prims_common.suggest_memory_format(t) for t in (first, second)]
    chosen = torch.channels_last if torch.channels_last in formats else torch.contiguous_format
    return torch.empty(size, dtype=first.dtype, device=first.device, memory_format=chosen)


@register_fake("atrous_conv2d")
def _(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    allow_tf32: bool = False,
) -> Tensor:
    extents = output_size(input.shape[2:], weight.shape[2:], stride, padding, dilation)
    return _empty([input.shape[0], weight.shape[0], *extents], input, weight)


@register_fake("_atrous_conv2d_fused")
def _(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    relu: bool,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    allow_tf32: bool = False,
    packed: Tensor | None = None,
) -> Tensor:
    extents = output_size(input.shape[2:], weight.shape[2:], stride, padding, dilation)
    return _empty([input.shape[0], weight.shape[0], *extents], input, weight)


@register_fake("_atrous_conv2d_pack_weight")
def _(weight: Tensor, groups: int, points: Sequence[int] = ()) -> Tensor:
    # Content and size depend on the CPU.
    size = torch.library.get_ctx().new_dynamic_size()
    wide = weight.dtype == torch.float64
    return weight.new_empty([*points, size], dtype=torch.float64 if wide else torch.float32)


@register_fake("_atrous_conv2d_backward_input")
def _(
    grad_output: Tensor,
    weight: Tensor,
    input_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    allow_tf32: bool = False,
) -> Tensor:
    return _empty(input_size, grad_output, weight)


@register_fake("_atrous_conv2d_backward_weight")
def _(
    grad_output: Tensor,
    input: Tensor,
    weight_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    allow_tf32: bool = False,
) -> Tensor:
    return _empty(weight_size, grad_output, input)


# <grad, conv(x, w)> is linear in each of grad, x and w. The three operators are its partial
# derivatives, so the gradients of each operator are the other two.
_Gradients = tuple[Tensor | None, ...]


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, weight, _, *ctx.options = inputs
    ctx.save_for_backward(input, weight)


def _forward_gradient(ctx: Any, grad: Tensor) -> _Gradients:
    input, weight = ctx.saved_tensors
    needs_input, needs_weight, needs_bias = ctx.needs_input_grad[:3]
    return (
        _grad_input(grad, weight, input.shape, *ctx.options) if needs_input else None,
        _grad_weight(grad, input, weight.shape, *ctx.options) if needs_weight else None,
        grad.sum((0, 2, 3)) if needs_bias else None,
        *[None] * 5,
    )


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad_output, operand, ctx.size, *ctx.options = inputs
    ctx.save_for_backward(grad_output, operand)


def _backward_input_gradient(ctx: Any, grad: Tensor) -> _Gradients:
    grad_output, weight = ctx.saved_tensors
    needs_output, needs_weight = ctx.needs_input_grad[:2]
    return (
        _convolve(grad, weight, None, *ctx.options) if needs_output else None,
        _grad_weight(grad_output, grad, weight.shape, *ctx.options) if needs_weight else None,
        *[None] * 6,
    )


def _backward_weight_gradient(ctx: Any, grad: Tensor) -> _Gradients:
    grad_output, input = ctx.saved_tensors
    needs_output, needs_input = ctx.needs_input_grad[:2]
    return (
        _convolve(input, grad, None, *ctx.options) if needs_output else None,
        _grad_input(grad_output, grad, input.shape, *ctx.options) if needs_input else None,
        *[None] * 6,
    )


_convolve = register_derivatives(
    _forward, _forward_gradient, _save_forward, multilinear(_forward, 0, 1, added=2)
)
_grad_input = register_derivatives(
    _backward_input, _backward_input_gradient, _save_backward, multilinear(_backward_input, 0, 1)
)
_grad_weight = register_derivatives(
    _backward_weight, _backward_weight_gradient, _save_backward, multilinear(_backward_weight, 0, 1)
)
refuse_derivatives(_pack_weight)
convolve_fused = refuse_derivatives(_fused)
register_autocast(_forward, "lower")
register_autocast(_fused, "lower")
