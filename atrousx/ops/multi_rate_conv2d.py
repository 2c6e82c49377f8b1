"""Convolutions of one input at several dilations: the function, its fake kernels and gradients."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .._derivatives import multilinear, refuse_derivatives, register_derivatives
from .._library import only_torch, register_autocast
from ..backend.choice import allows_tf32, get_backend
from ..backend.self_check import ensure_right
from ._check import check_device, check_map, check_operand, check_rank, check_steps
from ._kernels import register_fake

_forward = torch.ops.atrousx.multi_rate_conv2d.default
_forward_relu = torch.ops.atrousx._multi_rate_conv2d_relu.default
_backward_input = torch.ops.atrousx._atrous_conv2d_backward_input.default
_backward_weight = torch.ops.atrousx._atrous_conv2d_backward_weight.default


def multi_rate_conv2d(
    input: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None = None,
    dilations: Sequence[int] = (6, 12, 18),
    *,
    reduce: Literal["cat", "sum"] = "cat",
) -> Tensor:
    r"""Convolves one input at several dilations into one result, as in the ASPP pyramid.

    .. math::
        y = \big[\,B_1(x),\; \ldots,\; B_n(x)\,\big] \quad\text{or}\quad y = \sum_b B_b(x), \qquad
        B_b(x)_{n,k,o,p} = b_{b,k} + \sum_{c,i,j} w_{b,k,c,i,j}\;
        x_{n,\,c,\;o + (i - \lfloor KH_b/2 \rfloor) d_b,\;p + (j - \lfloor KW_b/2 \rfloor) d_b}

    The sum has only the taps whose sample lies on the map. The stride is 1 and the output has the
    size of the input. Each branch writes directly to its channels of the result, or adds to the
    result; nothing is concatenated afterwards. For "sum", the centre taps of the branches read the
    same element, so they are added first and multiplied once. Gradients are exact to any order.
    Forward and backward are deterministic. On CUDA, TF32 is used as in :func:`atrous_conv2d`. If
    atrousx has no kernels for the device, PyTorch's convolution computes the branches, unless
    :func:`atrousx.set_backend` was called with "native".

    Args:
        input: ``[N, C, H, W]`` or ``[C, H, W]``, float32, float64, float16 or bfloat16, any
            strides, N may be 0.
        weights: for each branch ``[K_b, C, KH_b, KW_b]`` with odd KH and KW (1x1 is allowed), of
            the dtype and on the device of ``input``. For "sum" all branches have the same K.
        biases: for each branch ``[K_b]``, of the dtype and on the device of ``input``; or None.
        dilations: for each branch the pixels between neighbouring taps.
        reduce: "cat" concatenates the branches (DeepLab v3), "sum" adds them (DeepLab v2).

    Returns:
        ``[N, K_1 + ... + K_n, H, W]`` for "cat", ``[N, K, H, W]`` for "sum". It is channels_last
        if ``input`` or one of ``weights`` is.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a rank or shape is wrong; a kernel extent is even; the lists have different
            lengths or are empty; a dilation is not positive; a tap lies more than 2**31 - 1 pixels
            away; the map is empty; or ``reduce`` is unknown.
        RuntimeError: the tensors have different dtypes or devices.

    Source:
        Chen et al., "DeepLab", arXiv:1606.00915, section 3.2 (sum), and "Rethinking Atrous
        Convolution for Semantic Image Segmentation", arXiv:1706.05587, section 3.3 (cat).

    Example:
        >>> import torch, atrousx
        >>> row = torch.tensor([[[[1.0, 2.0, 3.0, 4.0, 5.0]]]])
        >>> taps = [torch.tensor([[[[1.0, 10.0, 100.0]]]])] * 2
        >>> atrousx.ops.multi_rate_conv2d(row, taps, dilations=(1, 2), reduce="sum")
        tensor([[[[520., 741., 963., 585., 107.]]]])
    """
    batched = _check_tensors(input, weights, biases)
    rates = _check_branches(input, weights, biases, dilations)
    if reduce not in ("cat", "sum"):
        raise ValueError(f"reduce must be 'cat' or 'sum', got {reduce!r}")
    adds = reduce == "sum"
    if adds and any(weight.shape[0] != weights[0].shape[0] for weight in weights):
        raise ValueError(
            "weights must have one number of outputs to be summed, "
            f"got {[weight.shape[0] for weight in weights]}"
        )
    if only_torch(input) and get_backend() != "native":
        return _by_torch(input, weights, biases, rates, adds)
    check_device("input", input)
    ensure_right("multi_rate_conv2d", input)
    batch = input if batched else input.unsqueeze(0)
    bias = _join(biases, adds)
    result: Tensor = _convolve(batch, weights, bias, rates, adds, allows_tf32(input))
    return result if batched else result.squeeze(0)


def _by_torch(
    input: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None,
    rates: Sequence[int],
    adds: bool,
) -> Tensor:
    branches = [
        F.conv2d(input, w, b, padding=[rate * (k // 2) for k in w.shape[2:]], dilation=rate)
        for w, b, rate in zip(weights, biases or itertools.repeat(None), rates, strict=False)
    ]
    # In [C, H, W] and in [N, C, H, W] channels are the third dimension from the end.
    return torch.stack(branches).sum(0) if adds else torch.cat(branches, -3)


def _join(biases: Sequence[Tensor] | None, adds: bool) -> Tensor | None:
    if biases is None:
        return None
    return torch.stack(list(biases)).sum(0) if adds else torch.cat(list(biases))


def _check_tensors(
    input: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor] | None
) -> bool:
    """Checks types, ranks, dtypes and devices; returns whether input has a batch dimension."""
    batched = check_map("input", input)
    for name, tensors in (("weights", weights), ("biases", biases)):
        if tensors is None and name == "biases":
            continue
        if isinstance(tensors, Tensor) or not isinstance(tensors, Sequence):
            raise TypeError(f"{name} must be a list of tensors, got {type(tensors).__name__}")
        for index, tensor in enumerate(tensors):
            check_operand(f"{name}[{index}]", tensor, "input", input)
    for index, weight in enumerate(weights):
        check_rank(f"weights[{index}]", weight, 4, "[K, C, KH, KW]")
    return batched


def _check_branches(
    input: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None,
    dilations: Sequence[int],
) -> list[int]:
    """Checks shapes and counts; returns the dilations."""
    rates = list(dilations) if isinstance(dilations, Sequence) else []
    if not all(isinstance(d, (int, torch.SymInt)) and not isinstance(d, bool) for d in rates) or (
        not isinstance(dilations, Sequence) or isinstance(dilations, str)
    ):
        raise TypeError(f"dilations must be a list of ints, got {dilations!r}")
    check_steps("dilations", rates, rates, least=1)
    if not weights or len(rates) != len(weights):
        raise ValueError(
            "there must be a weight for each dilation, at least one, "
            f"got {len(weights)} weights and {len(rates)} dilations"
        )
    if biases is not None and len(biases) != len(weights):
        raise ValueError(f"biases must be {len(weights)}, one per weight, got {len(biases)}")
    if any(extent == 0 for extent in input.shape[-2:]):
        raise ValueError(f"input must have a non-empty H and W, got shape {tuple(input.shape)}")
    for index, weight in enumerate(weights):
        outputs, channels, *taps = weight.shape
        if outputs == 0 or any(extent % 2 == 0 for extent in taps):
            raise ValueError(
                f"weights[{index}] must have a non-empty K and odd KH and KW, "
                f"got shape {tuple(weight.shape)}"
            )
        reach = [rates[index] * (extent // 2) for extent in taps]
        check_steps(f"dilations[{index}] times half the kernel", reach, reach, least=0)
        if channels != input.shape[-3]:
            raise ValueError(
                f"weights[{index}] of shape {tuple(weight.shape)} needs an input of {channels} "
                f"channels, got input of shape {tuple(input.shape)}"
            )
        if biases is not None and tuple(biases[index].shape) != (outputs,):
            raise ValueError(
                f"biases[{index}] must have shape ({outputs},), one per output, "
                f"got {tuple(biases[index].shape)}"
            )
    return rates


def _fake(
    input: Tensor,
    weights: Sequence[Tensor],
    bias: Tensor | None,
    dilations: Sequence[int],
    sum: bool,
    allow_tf32: bool,
    packed: Sequence[Tensor] = (),  # only the operator with ReLU has this argument
) -> Tensor:
    # A loop, because the argument `sum` hides the builtin.
    outputs = 0
    for weight in weights:
        outputs = weight.shape[0] if sum else outputs + weight.shape[0]
    formats = [torch._prims_common.suggest_memory_format(t) for t in (input, *weights)]
    chosen = torch.channels_last if torch.channels_last in formats else torch.contiguous_format
    size = [input.shape[0], outputs, *input.shape[2:]]
    return torch.empty(size, dtype=input.dtype, device=input.device, memory_format=chosen)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, weights, _, ctx.dilations, ctx.adds, ctx.allow_tf32 = inputs
    ctx.save_for_backward(input, *weights)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """Returns the gradients of all branches; the input's is their sum, in the order of branches."""
    input, *weights = ctx.saved_tensors
    needs_input, needs_weights, needs_bias = ctx.needs_input_grad[:3]
    grad_input: Tensor | None = None
    grad_weights: list[Tensor | None] = []
    first = 0
    for weight, dilation, needs_weight in zip(weights, ctx.dilations, needs_weights, strict=True):
        part = grad if ctx.adds else grad.narrow(1, first, weight.shape[0])
        first += weight.shape[0]
        rows, columns = (dilation * (extent // 2) for extent in weight.shape[2:])
        sides = (rows, columns, rows, columns)
        options = ((1, 1), sides, (dilation, dilation), 1, ctx.allow_tf32)
        if needs_input:
            branch = _backward_input(part, weight, input.shape, *options)
            grad_input = branch if grad_input is None else grad_input + branch
        grad_weights.append(
            _backward_weight(part, input, weight.shape, *options) if needs_weight else None
        )
    return grad_input, grad_weights, grad.sum((0, 2, 3)) if needs_bias else None, None, None, None


for _name in ("multi_rate_conv2d", "_multi_rate_conv2d_relu"):
    register_fake(_name)(_fake)
for _op in (_forward, _forward_relu):
    register_autocast(_op, "lower")
_convolve = register_derivatives(_forward, _gradient, _save, multilinear(_forward, 0, 1, added=2))
multi_rate_conv2d_relu = refuse_derivatives(_forward_relu)
