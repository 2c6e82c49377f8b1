"""Adds the softmax of upsampled logits to a sum: the public function and its fake kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from .._derivatives import check_no_tangent, refuse_derivatives
from ..backend.self_check import ensure_right
from ._check import check_device, check_floating, check_rank, check_same_device, check_tensor
from ._kernels import register_fake

_add = torch.ops.atrousx._upsample_softmax_add_.default


def upsample_softmax_add_(
    sum: Tensor,
    logits: Tensor,
    alpha: float = 1.0,
    *,
    flip: bool = False,
    align_corners: bool = False,
) -> Tensor:
    r"""Adds the softmax of bilinearly upsampled logits to ``sum``, in place and in one pass.

    .. math::
        s_{n,c,o,p} \mathrel{+}= \alpha \; \mathrm{softmax}_c \, U(x)_{n,o,p}

    with :math:`U` as in ``ops.upsample_bilinear2d``. This is one term of the mean over scales and
    mirror images that is used to test segmentation; :math:`\alpha` is then one divided by the
    number of terms. No other memory of the size of ``sum`` is allocated. There is no gradient.

    Args:
        sum: ``[N, C, OH, OW]``, float32, or float64 for float64 logits. Any strides are allowed if
            no two elements share memory. It is changed and returned.
        logits: ``[N, C, H, W]``, float32, float64, float16 or bfloat16 (half types are computed in
            float32), any strides, N may be 0.
        alpha: the factor of the probabilities.
        flip: the logits belong to the mirrored image, so their columns are reversed before they are
            upsampled.
        align_corners: if true, the centres of the corner pixels of both maps coincide; if false,
            the borders of the maps coincide.

    Returns:
        ``sum``.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a rank is wrong, the map is empty, or batches or channels differ.
        RuntimeError: the tensors are on different devices; ``sum`` requires a gradient; or elements
            of ``sum`` share memory.

    Source: the inference of arXiv:1706.05587, section 4.

    Example:
        >>> import torch, atrousx
        >>> mean = torch.zeros(1, 2, 1, 2)
        >>> for flip in (False, True):
        ...     logits = torch.tensor([[[[0.0, 90.0]], [[0.0, 0.0]]]])
        ...     _ = atrousx.ops.upsample_softmax_add_(mean, logits, 1 / 2, flip=flip)
        >>> mean
        tensor([[[[0.7500, 0.7500]],
        <BLANKLINE>
                 [[0.2500, 0.2500]]]])
    """
    check_floating("logits", logits)
    check_device("logits", logits)
    check_rank("logits", logits, 4, "[N, C, H, W]")
    if logits.numel() == 0 and 0 in logits.shape[1:]:
        raise ValueError(f"logits must have non-empty C, H and W, got shape {tuple(logits.shape)}")
    check_tensor("sum", sum)
    check_rank("sum", sum, 4, "[N, C, OH, OW]")
    computed = torch.float64 if logits.dtype == torch.float64 else torch.float32
    if sum.dtype != computed:
        raise TypeError(
            f"sum must be {str(computed)[6:]} for {str(logits.dtype)[6:]} logits, "
            f"got {str(sum.dtype)[6:]}"
        )
    if sum.shape[:2] != logits.shape[:2] or 0 in sum.shape[2:]:
        raise ValueError(
            f"sum must have N and C of logits ({logits.shape[0]}, {logits.shape[1]}) and a size, "
            f"got shape {tuple(sum.shape)}"
        )
    check_same_device("sum", sum, "logits", logits)
    if sum.requires_grad and torch.is_grad_enabled():
        raise RuntimeError("sum must not require a gradient: there is none")
    if not torch.compiler.is_compiling() and torch._debug_has_internal_overlap(sum) == 1:
        raise RuntimeError("sum must not share memory with itself, as an expanded tensor does")
    ensure_right("upsample_softmax_add_", logits)
    for tensor in (sum, logits):
        check_no_tangent("upsample_softmax_add_", tensor)
    _add_term(sum, logits.detach(), float(alpha), bool(flip), bool(align_corners))
    return sum


@register_fake("_upsample_softmax_add_")
def _(sum: Tensor, logits: Tensor, alpha: float, flip: bool, align_corners: bool) -> None:
    return None


_add_term = refuse_derivatives(_add)
