"""Labels of upsampled logits: the public function and its fake kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import torch
from torch import Tensor

from .._derivatives import check_no_tangent, refuse_derivatives
from .._library import register_autocast
from ..backend.self_check import ensure_right
from ._check import check_device, check_floating, check_rank, check_result_size, pair
from ._kernels import register_fake

_argmax = torch.ops.atrousx._upsample_argmax.default


@overload
def upsample_argmax(
    logits: Tensor,
    size: int | Sequence[int],
    *,
    align_corners: bool = False,
    return_probability: Literal[False] = False,
    dtype: torch.dtype = torch.int64,
) -> Tensor: ...


@overload
def upsample_argmax(
    logits: Tensor,
    size: int | Sequence[int],
    *,
    align_corners: bool = False,
    return_probability: Literal[True],
    dtype: torch.dtype = torch.int64,
) -> tuple[Tensor, Tensor]: ...


@overload
def upsample_argmax(
    logits: Tensor,
    size: int | Sequence[int],
    *,
    align_corners: bool = False,
    return_probability: bool,
    dtype: torch.dtype = torch.int64,
) -> Tensor | tuple[Tensor, Tensor]: ...


def upsample_argmax(
    logits: Tensor,
    size: int | Sequence[int],
    *,
    align_corners: bool = False,
    return_probability: bool = False,
    dtype: torch.dtype = torch.int64,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Returns the labels of bilinearly upsampled logits, which are never stored.

    .. math::
        y_{n,o,p} = \arg\max_c \; U(x)_{n,c,o,p}

    with :math:`U` as in ``ops.upsample_bilinear2d``. The result equals
    ``interpolate(logits, size, mode="bilinear").argmax(1)`` wherever the two largest values differ
    by more than rounding. As there, the first of equal values wins, and NaN wins over all numbers.
    However, a NaN or infinity that a pixel reads with weight 0 need not affect this pixel. No other
    memory of the size of the result is allocated. There is no gradient.

    Args:
        logits: ``[N, C, H, W]``, float32, float64, float16 or bfloat16, any strides, N may be 0.
        size: output height and width in pixels; one int for both.
        align_corners: if true, the centres of the corner pixels of both maps coincide; if false,
            the borders of the maps coincide.
        return_probability: also return the probability of each label, the maximum of the softmax.
        dtype: the dtype of the labels: torch.int64, or torch.uint8 for up to 256 channels.

    Returns:
        Labels ``[N, OH, OW]``. With ``return_probability`` also the probabilities ``[N, OH, OW]``
        in float32, or in float64 for float64 logits.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: the rank is wrong; the map is empty; a size is not positive; the result is
            larger than any memory; or there are too many channels.

    Example:
        >>> import torch, atrousx
        >>> logits = torch.tensor([[[[1.0, 0.0]], [[0.0, 2.0]]]])
        >>> atrousx.ops.upsample_argmax(logits, (1, 6))
        tensor([[[0, 0, 1, 1, 1, 1]]])
    """
    check_floating("logits", logits)
    check_device("logits", logits)
    check_rank("logits", logits, 4, "[N, C, H, W]")
    if logits.numel() == 0 and 0 in logits.shape[1:]:
        raise ValueError(f"logits must have non-empty C, H and W, got shape {tuple(logits.shape)}")
    output_size = pair("size", size)
    if any(extent <= 0 for extent in output_size):
        raise ValueError(f"size must be positive, got {tuple(output_size)}")
    check_result_size((*logits.shape[:2], *output_size))
    if dtype not in (torch.int64, torch.uint8):
        raise TypeError(f"dtype must be torch.int64 or torch.uint8, got {dtype}")
    narrow = dtype == torch.uint8
    if narrow and logits.shape[1] > 256:
        raise ValueError(
            f"dtype=torch.uint8 holds 256 labels, logits have {logits.shape[1]} channels"
        )
    ensure_right("upsample_argmax", logits)
    if return_probability:
        check_no_tangent("upsample_argmax", logits)
    labels, probability = _labels(
        logits.detach(), output_size, bool(align_corners), bool(return_probability), narrow
    )
    return (labels, probability) if return_probability else labels


@register_fake("_upsample_argmax")
def _(
    logits: Tensor,
    output_size: Sequence[int],
    align_corners: bool,
    with_probability: bool,
    narrow: bool,
) -> tuple[Tensor, Tensor]:
    size = (logits.shape[0], *output_size)
    share = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return (
        logits.new_empty(size, dtype=torch.uint8 if narrow else torch.int64),
        logits.new_empty(size if with_probability else (0,), dtype=share),
    )


_labels = refuse_derivatives(_argmax)
register_autocast(_argmax, "float32")
