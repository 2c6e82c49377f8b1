"""Converts the geometry arguments of a convolution: pairs, padding, the share of live taps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from .._taps import live_share, output_size
from ._check import check_steps, pair

Padding = int | Sequence[int] | Literal["same", "valid"]


def live_fraction(
    input_size: Sequence[int],
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    dilation: int | Sequence[int] = 1,
) -> float:
    """Returns the share of a convolution's multiply-adds that touch data and not padding.

    It is ``live / (KH * KW * OH * OW)``, where ``live`` counts the pairs of an output pixel and a
    tap whose sample lies on the map. ``atrous_conv2d`` computes only these.

    Args:
        input_size: height and width of the map in pixels.
        kernel_size, stride, padding, dilation: as in ``atrous_conv2d``.

    Returns:
        A number from 0 to 1. It is the same for forward, grad-input and grad-weight.

    Raises:
        TypeError: an argument is not an int or a pair of ints.
        ValueError: a size is not positive or is above 2**31 - 1, or the output is empty.

    Example:
        >>> import atrousx
        >>> round(atrousx.ops.live_fraction((33, 33), 3, padding=18, dilation=18), 3)
        0.405
    """
    sizes = positive_pair("input_size", input_size)
    taps = positive_pair("kernel_size", kernel_size)
    strides = positive_pair("stride", stride)
    dilations = positive_pair("dilation", dilation)
    sides = sides_of(padding, taps, strides, dilations)
    outputs = output_size(sizes, taps, strides, sides, dilations)
    if any(extent <= 0 for extent in outputs):
        raise ValueError(f"the output would be empty: {tuple(outputs)}")
    return live_share(sizes, taps, outputs, strides, sides, dilations)


def positive_pair(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    values = pair(name, value)
    check_steps(name, value, values, least=1)
    return values


def sides_of(
    padding: Padding | str, taps: Sequence[int], stride: tuple[int, int], dilation: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Returns the padding as (top, left, bottom, right)."""
    if isinstance(padding, str):
        if padding == "valid":
            return (0, 0, 0, 0)
        if padding != "same":
            raise ValueError(
                f"padding must be 'same', 'valid', an int or a pair of ints, got {padding!r}"
            )
        if stride != (1, 1):
            raise ValueError(f"padding='same' needs stride 1, got {stride}")
        total = [d * (k - 1) for d, k in zip(dilation, taps, strict=True)]
        top, left = total[0] // 2, total[1] // 2
        sides = (top, left, total[0] - top, total[1] - left)
        check_steps("padding='same'", sides, sides, least=0)
        return sides
    rows, columns = pair("padding", padding)
    check_steps("padding", padding, (rows, columns), least=0)
    return (rows, columns, rows, columns)
