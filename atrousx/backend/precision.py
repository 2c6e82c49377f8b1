"""The precision of the CPU's convolutions: whether they may use minimal filtering."""

from __future__ import annotations

from typing import Literal, get_args

import torch

Precision = Literal["default", "highest"]
PRECISIONS: tuple[str, ...] = get_args(Precision)

_precision: Precision = "default"


def set_precision(precision: Precision) -> None:
    """Sets the precision of atrousx's CPU convolutions in the whole process, from the next call on.

    - "default": 3x3 filters with many channels use minimal filtering (Winograd), which needs fewer
      products than live taps. It is used only where it is faster and the operands suit it; see
      :func:`atrousx.ops.atrous_conv2d`.
    - "highest": every convolution, forward and backward, multiplies its live taps. Layers that
      would use minimal filtering then take up to twice as long.

    This setting does not change PyTorch's convolution or the CUDA kernels. The CUDA kernels follow
    ``torch.backends.cudnn.conv.fp32_precision``.

    Args:
        precision: "default" or "highest".

    Raises:
        ValueError: any other value.

    Example:
        >>> import atrousx
        >>> atrousx.set_precision("highest")
        >>> atrousx.get_precision()
        'highest'
        >>> atrousx.set_precision("default")
    """
    global _precision
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be 'default' or 'highest', got {precision!r}")
    torch.ops.atrousx._set_highest_precision(precision == "highest")
    _precision = precision


def get_precision() -> Precision:
    """Returns the precision of atrousx's CPU convolutions; see :func:`set_precision`.

    Example:
        >>> import atrousx
        >>> atrousx.get_precision()
        'default'
    """
    return _precision
