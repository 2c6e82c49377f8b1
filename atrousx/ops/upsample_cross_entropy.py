"""Cross-entropy of upsampled logits: the public function, its fake kernels and gradient."""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .._derivatives import register_derivatives
from .._library import register_autocast
from ..backend.self_check import ensure_right
from ._check import check_device, check_floating, check_rank, check_same_device, check_tensor
from ._kernels import register_fake

_forward = torch.ops.atrousx._upsample_cross_entropy.default
_backward = torch.ops.atrousx._upsample_cross_entropy_backward.default

Reduction = Literal["none", "mean", "sum"]
REDUCTIONS: tuple[str, ...] = get_args(Reduction)  # indexed by the operator's numbers
LABELS = (torch.int64, torch.int32, torch.uint8)


def upsample_cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    align_corners: bool = False,
) -> Tensor:
    r"""Returns the cross-entropy of bilinearly upsampled logits, which are never stored.

    .. math::
        \ell_i = -(1 - \varepsilon)\, w_{t_i} \log p_{i,t_i}
        - \frac{\varepsilon}{C} \sum_c w_c \log p_{i,c},
        \qquad p_i = \mathrm{softmax}_c\, U(x)_i

    The loss is computed for each pixel i of ``target``, with :math:`U` as in
    ``ops.upsample_bilinear2d``. Value and gradient equal those of
    ``cross_entropy(interpolate(logits, target.shape[1:], mode="bilinear"), target, ...)`` up to
    rounding, but with less memory. The forward keeps one number for each pixel. The backward
    recomputes the probabilities block by block and gathers them into the gradient, in a fixed
    order.

    Args:
        logits: ``[N, C, H, W]``, float32, float64, float16 or bfloat16 (half types are computed in
            float32), any strides, N may be 0.
        target: labels ``[N, OH, OW]``, int64, int32 or uint8.
        weight: ``[C]``, a factor for each class.
        ignore_index: the label of pixels that do not count.
        reduction: "mean", "sum" or "none". "mean" divides by the sum of the weights of the pixels
            that count; it is NaN if there is none.
        label_smoothing: the share :math:`\varepsilon` of the loss that is spread over all classes,
            0..1.
        align_corners: if true, the centres of the corner pixels of both maps coincide; if false,
            the borders of the maps coincide.

    Returns:
        A scalar, or ``[N, OH, OW]`` for "none", in the dtype of ``logits``; under autocast float32
        for half types. It has derivatives of first order only.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: the shapes do not fit each other; the reduction is unknown; the smoothing is
            outside 0..1; ``ignore_index`` does not fit in 64 bits; or, on the CPU, a label is
            outside 0..C-1. On a GPU such a label makes the loss NaN instead, because a check would
            have to wait for the GPU.
        RuntimeError: the tensors are on different devices.

    Example:
        >>> import torch, atrousx
        >>> logits = torch.zeros(1, 21, 65, 65)
        >>> target = torch.randint(21, (1, 513, 513))
        >>> atrousx.ops.upsample_cross_entropy(logits, target)
        tensor(3.0445)
    """
    _check(logits, target, weight, reduction, label_smoothing)
    _check_index(ignore_index)
    ensure_right("upsample_cross_entropy", logits)
    computed = torch.float64 if logits.dtype == torch.float64 else torch.float32
    class_weight = None if weight is None else weight.to(computed).contiguous()
    loss: Tensor = _loss(
        logits,
        target.contiguous(),
        class_weight,
        ignore_index,
        float(label_smoothing),
        bool(align_corners),
        REDUCTIONS.index(reduction),
    )[0]
    if logits.device.type == "cpu" and not torch.compiler.is_compiling():
        _explain_nan(loss, target, logits.shape[1], ignore_index)
    # Under autocast a loss is float32, as PyTorch's losses are.
    kept = loss.dtype == logits.dtype or torch.is_autocast_enabled(logits.device.type)
    return loss if kept else loss.to(logits.dtype)


def _explain_nan(loss: Tensor, target: Tensor, classes: int, ignore_index: int) -> None:
    """Raises ValueError if the loss is NaN because of an invalid label.

    The target is searched only if the loss is NaN.
    """
    values = loss.detach()
    if not math.isnan(values.item() if values.dim() == 0 else values.sum().item()):
        return
    labels = target.long()
    bad = ((labels < 0) | (labels >= classes)) & (labels != ignore_index)
    if bool(bad.any()):
        n, row, column = bad.nonzero()[0].tolist()
        raise ValueError(
            f"target must hold labels from 0 to {classes - 1} or ignore_index ({ignore_index}), "
            f"got {int(target[n, row, column])} at [{n}, {row}, {column}]"
        )


def _check(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: str,
    label_smoothing: float,
) -> None:
    check_floating("logits", logits)
    check_device("logits", logits)
    check_rank("logits", logits, 4, "[N, C, H, W]")
    if logits.numel() == 0 and 0 in logits.shape[1:]:
        raise ValueError(f"logits must have non-empty C, H and W, got shape {tuple(logits.shape)}")
    check_tensor("target", target)
    if target.dtype not in LABELS:
        raise TypeError(f"target must be int64, int32 or uint8, got {str(target.dtype)[6:]}")
    check_rank("target", target, 3, "[N, OH, OW]")
    if target.shape[0] != logits.shape[0] or target.shape[1] == 0 or target.shape[2] == 0:
        raise ValueError(
            f"target must have the batch of logits ({logits.shape[0]}) and a size, "
            f"got shape {tuple(target.shape)}"
        )
    if weight is not None:
        check_floating("weight", weight)
        if weight.shape != (logits.shape[1],):
            raise ValueError(
                f"weight must have shape ({logits.shape[1]},), one per class, "
                f"got {tuple(weight.shape)}"
            )
        if weight.requires_grad:
            raise RuntimeError("weight must not require a gradient: there is none for it")
    for name, tensor in (("target", target), ("weight", weight)):
        if tensor is not None:
            check_same_device(name, tensor, "logits", logits)
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must lie in 0..1, got {label_smoothing!r}")


def _check_index(ignore_index: int) -> None:
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, Integral):
        raise TypeError(f"ignore_index must be an int, got {ignore_index!r}")
    if not -(2**63) <= ignore_index < 2**63:
        raise ValueError(f"ignore_index must fit 64 bits, got {ignore_index}")


@register_fake("_upsample_cross_entropy")
def _(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    align_corners: bool,
    reduction: int,
) -> tuple[Tensor, Tensor, Tensor]:
    sums = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return (
        logits.new_empty(target.shape if REDUCTIONS[reduction] == "none" else (), dtype=sums),
        logits.new_empty((), dtype=torch.float64),
        logits.new_empty(target.shape, dtype=sums),
    )


@register_fake("_upsample_cross_entropy_backward")
def _(grad: Tensor, logits: Tensor, *_: Any) -> Tensor:
    memory_format = torch._prims_common.suggest_memory_format(logits)
    return torch.empty_like(logits, memory_format=memory_format)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, target, weight, *ctx.options = inputs
    _, total_weight, log_sum = output
    ctx.mark_non_differentiable(total_weight, log_sum)
    ctx.set_materialize_grads(False)  # zeros for log_sum would take one more number per pixel
    ctx.save_for_backward(logits, target, weight, total_weight, log_sum)


def _gradient(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 7
    # If the gradient may be differentiated, call the dispatcher: it raises for second derivatives.
    slopes = _backward if torch.is_grad_enabled() else _slopes
    grad_logits: Tensor = slopes(grad.contiguous(), *ctx.saved_tensors, *ctx.options)
    return grad_logits, *[None] * 6


def _no_gradient(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError("upsample_cross_entropy has no second derivative")


_loss = register_derivatives(_forward, _gradient, _save)
_slopes = register_derivatives(_backward, _no_gradient)
register_autocast(_forward, "float32")
