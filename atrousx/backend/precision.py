"""How exactly the CPU's kernels convolve: with minimal filtering, or never with it."""

from __future__ import annotations

from typing import Literal, get_args

import torch

Precision = Literal["default", "highest"]
PRECISIONS: tuple[str, ...] = get_args(Precision)

_precision: Precision = "default"


def set_precision(precision: Precision) -> None:
    """Sets how exactly atrousx's CPU kernels convolve, in the whole process, from the next call on.

    - "default": wide 3x3 filters take fewer products than live taps, by minimal filtering, where
      that pays and the numbers suit it: see :func:`atrousx.ops.atrous_conv2d`.
    - "highest": every convolution, forward and backward, multiplies its live taps. The layers that
      minimal filtering serves then take up to twice as long.

    It changes neither PyTorch's convolution nor CUDA's kernels; those follow
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
    """Says how exactly atrousx's CPU kernels convolve; see :func:`set_precision`.

    Example:
        >>> import atrousx
        >>> atrousx.get_precision()
        'default'
    """
    return _precision
