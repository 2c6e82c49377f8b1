"""Atrous convolution by the backend "measure": each pass uses the faster implementation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._library import implement_composite
from ..backend.choice import knows_torch_only
from ..backend.geometry import FORWARD, GRAD_INPUT, GRAD_WEIGHT, Operands, Options
from ..backend.measure import (
    NATIVE,
    TORCH_FOR_WEIGHT,
    TORCH_THROUGHOUT,
    note_torch_throughout,
    runs_natively,
    who_computes,
)
from ..backend.passes import (
    convolve_by_torch,
    convolve_natively,
    gradient_of_input,
    gradient_of_weight,
    gradients_by_torch,
)
from ._kernels import on_one_device

_op = torch.ops.atrousx._measured_conv2d.default


def convolve_measured(
    input: Tensor, weight: Tensor, bias: Tensor | None, options: Options
) -> Tensor:
    """Convolves a batch by the backend "measure"; the caller has checked the arguments."""
    if torch.compiler.is_compiling():
        # Dynamo records one call of this composite operator; later stages of the compiler
        # decompose it.
        output: Tensor = _op(input, weight, bias, *options)
        return output
    if knows_torch_only():
        return convolve_by_torch(input, weight, bias, options)
    return _convolve(input, weight, bias, options)


def _convolve(input: Tensor, weight: Tensor, bias: Tensor | None, options: Options) -> Tensor:
    if torch._C._is_any_autocast_enabled():
        kind = input.device.type
        if torch.is_autocast_enabled(kind):
            lowered = None if bias is None else _lowered(bias, kind)
            with torch.autocast(kind, enabled=False):
                return _convolve(_lowered(input, kind), _lowered(weight, kind), lowered, options)
    trains = torch.is_grad_enabled() and (
        input.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    )
    who = who_computes(FORWARD, Operands(input, weight, bias), options)
    if not trains:
        return _forward(input, weight, bias, options, who)
    if who == TORCH_THROUGHOUT or (who == TORCH_FOR_WEIGHT and not input.requires_grad):
        return convolve_by_torch(input, weight, bias, options)
    output: Tensor = _Measured.apply(input, weight, bias, options, who)  # type: ignore[no-untyped-call]
    return output


def _lowered(tensor: Tensor, kind: str) -> Tensor:
    """Casts a tensor as autocast casts the operands of a convolution."""
    if tensor.dtype == torch.float64 or tensor.device.type != kind:
        return tensor
    return tensor.to(torch.get_autocast_dtype(kind))


def _forward(
    input: Tensor, weight: Tensor, bias: Tensor | None, options: Options, who: int
) -> Tensor:
    if who == NATIVE:
        return convolve_natively(input, weight, bias, options)
    return convolve_by_torch(input, weight, bias, options)


class _Measured(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, options: Options, who: int
    ) -> Tensor:
        ctx.options = options
        ctx.save_for_backward(input, weight)
        ctx.bias = None if bias is None else bias.detach()  # part of the forward's lookup key
        return _forward(input, weight, bias, options, who)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # All functions that are called here can be differentiated again.
        input, weight = ctx.saved_tensors
        operands = Operands(input, weight, grad_output=grad)
        needs_input, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        own_input = needs_input and runs_natively(GRAD_INPUT, operands, ctx.options)
        own_weight = needs_weight and runs_natively(GRAD_WEIGHT, operands, ctx.options)
        of_input, of_weight = needs_input and not own_input, needs_weight and not own_weight
        to_input = to_weight = None
        if of_input or of_weight:
            to_input, to_weight = gradients_by_torch(operands, ctx.options, of_input, of_weight)
            if of_weight and not own_input:
                forward = Operands(input, weight, ctx.bias)
                note_torch_throughout(forward, ctx.options, needs_input)
        if own_input:
            to_input = gradient_of_input(operands, ctx.options)
        if own_weight:
            to_weight = gradient_of_weight(operands, ctx.options)
        return to_input, to_weight, grad.sum((0, 2, 3)) if needs_bias else None, None, None


def _composite(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    allow_tf32: bool,
) -> Tensor:
    geometry: Any = (tuple(stride), tuple(padding), tuple(dilation), groups, allow_tf32)
    options = Options._make(geometry)
    if knows_torch_only():
        return convolve_by_torch(input, weight, bias, options)
    return _convolve(input, weight, bias, options)


implement_composite(_op, on_one_device("_measured_conv2d", _composite))
