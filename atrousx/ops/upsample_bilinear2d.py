"""Bilinear resampling: the public function, its fake kernels, gradients and autocast rule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._derivatives import multilinear, register_derivatives
from .._library import register_autocast
from ..backend.self_check import ensure_right
from ._check import check_device, check_floating, check_rank, check_result_size, pair
from ._kernels import register_fake

_forward = torch.ops.atrousx.upsample_bilinear2d.default
_backward = torch.ops.atrousx._upsample_bilinear2d_backward.default


def upsample_bilinear2d(
    input: Tensor,
    size: int | Sequence[int] | None = None,
    scale_factor: float | Sequence[float] | None = None,
    *,
    align_corners: bool = False,
    recompute_scale_factor: bool = False,
) -> Tensor:
    r"""Resamples a batch of maps bilinearly, up or down, with a deterministic gradient.

    .. math::
        y_{o} = (1 - \lambda)\, x_{\lfloor s \rfloor} + \lambda\, x_{\lfloor s \rfloor + 1},
        \qquad s = \max(0, (o + \tfrac12) \tfrac{in}{out} - \tfrac12)

    The equation is applied along each axis in turn. With ``align_corners`` it is
    :math:`s = o\,(in - 1)/(out - 1)`. These are the conventions of
    ``torch.nn.functional.interpolate(mode="bilinear")``, and the results are equal. The gradient of
    each input sample is gathered in a fixed order, without atomics.

    There is one difference. If an output coincides with an input (:math:`\lambda = 0`),
    ``interpolate`` still multiplies the neighbour by 0, so a NaN or infinity there spreads. Here it
    need not spread.

    Args:
        input: ``[N, C, H, W]``, float32, float64, float16 or bfloat16, any strides, N may be 0.
        size: output height and width in pixels; one int for both.
        scale_factor: output size divided by input size, instead of ``size``; one float for both.
        align_corners: if true, the centres of the corner pixels of both maps coincide; if false,
            the borders of the maps coincide.
        recompute_scale_factor: compute the scale again from the rounded sizes; needs
            ``scale_factor``.

    Returns:
        ``[N, C, OH, OW]`` in the dtype and memory format of ``input``.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: the rank is wrong; the map is empty; a size or scale is not positive; the result
            is larger than any memory; or not exactly one of ``size`` and ``scale_factor`` is given.

    Example:
        >>> import torch, atrousx
        >>> logits = torch.arange(4.0).reshape(1, 1, 2, 2)
        >>> atrousx.ops.upsample_bilinear2d(logits, size=(2, 4))
        tensor([[[[0.0000, 0.2500, 0.7500, 1.0000],
                  [2.0000, 2.2500, 2.7500, 3.0000]]]])
    """
    check_floating("input", input)
    check_device("input", input)
    check_rank("input", input, 4, "[N, C, H, W]")
    if input.numel() == 0 and 0 in input.shape[1:]:
        raise ValueError(f"input must have non-empty C, H and W, got shape {tuple(input.shape)}")
    if (size is None) == (scale_factor is None):
        raise ValueError("exactly one of size and scale_factor must be given")
    scales: tuple[float | None, float | None] = (None, None)
    if size is None:
        assert scale_factor is not None
        given = _scale_pair(scale_factor)
        size = tuple(_scaled(extent, s) for extent, s in zip(input.shape[2:], given, strict=True))
        if not recompute_scale_factor:
            scales = given
    elif recompute_scale_factor:
        raise ValueError("recompute_scale_factor needs scale_factor, not size")
    output_size = pair("size", size)
    if output_size[0] <= 0 or output_size[1] <= 0:
        raise ValueError(f"the output size must be positive, got {tuple(output_size)}")
    check_result_size((*input.shape[:2], *output_size))
    ensure_right("upsample_bilinear2d", input)
    result: Tensor = _resample(input, output_size, bool(align_corners), *scales)
    return result


def _scale_pair(scale_factor: float | Sequence[float]) -> tuple[float, float]:
    if isinstance(scale_factor, (int, float, torch.SymFloat)):
        pair_given: tuple[float, ...] = (scale_factor, scale_factor)
    else:
        pair_given = tuple(scale_factor)
    if len(pair_given) != 2:
        raise ValueError(f"scale_factor must be one or two numbers, got {scale_factor!r}")
    if any(not (s > 0 and math.isfinite(s)) for s in pair_given):
        raise ValueError(f"scale_factor must be positive and finite, got {scale_factor!r}")
    return float(pair_given[0]), float(pair_given[1])


def _scaled(extent: int, scale: float) -> int:
    scaled = extent * scale
    # A symbolic extent stays symbolic. A huge float is refused here: math.floor(inf) raises an
    # error that does not name the argument.
    if type(scaled) is float and scaled >= 2.0**63:
        raise ValueError(f"scale_factor must leave sizes below 2**63, got {scale!r} for {extent}")
    return math.floor(scaled)


def _like(tensor: Tensor, size: Sequence[int]) -> Tensor:
    return tensor.new_empty(size).to(
        memory_format=torch._prims_common.suggest_memory_format(tensor)
    )


@register_fake("upsample_bilinear2d")
def _(
    input: Tensor,
    output_size: Sequence[int],
    align_corners: bool,
    scale_h: float | None = None,
    scale_w: float | None = None,
) -> Tensor:
    return _like(input, [*input.shape[:2], *output_size])


@register_fake("_upsample_bilinear2d_backward")
def _(
    grad_output: Tensor,
    height: int,
    width: int,
    align_corners: bool,
    scale_h: float | None = None,
    scale_w: float | None = None,
) -> Tensor:
    return _like(grad_output, [*grad_output.shape[:2], height, width])


# Both operators are linear, and each is the gradient of the other, to any order.
def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, _, *options = inputs
    ctx.transposed = input.shape[2], input.shape[3], *options


def _forward_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _transposed(grad, *ctx.transposed), None, None, None, None


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad_output, _, _, *options = inputs
    ctx.resampled = grad_output.shape[2:], *options


def _backward_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _resample(grad, *ctx.resampled), None, None, None, None, None


_resample = register_derivatives(
    _forward, _forward_gradient, _save_forward, multilinear(_forward, 0)
)
_transposed = register_derivatives(
    _backward, _backward_gradient, _save_backward, multilinear(_backward, 0)
)
# As PyTorch's: on the CPU the result has the dtype of the input.
register_autocast(_forward, "float32", cpu="unchanged")
