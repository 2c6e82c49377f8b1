"""Narrow networks: one factor for the number of channels of all layers."""

from __future__ import annotations

import math
from collections.abc import Iterable

# All numbers of channels are multiples of this, because vectors of the kernels hold 8 numbers.
MULTIPLE = 8


def scaled(channels: int, width: float) -> int:
    """Returns ``channels`` times ``width``, rounded to a multiple of 8, at least 8.

    >>> [scaled(channels, 0.1) for channels in (64, 256, 2048)]
    [8, 24, 208]
    """
    return max(MULTIPLE, round(channels * width / MULTIPLE) * MULTIPLE)


def check_width(width: float) -> None:
    if not isinstance(width, (int, float)) or isinstance(width, bool):
        raise TypeError(f"width must be a number, got {width!r}")
    if not 0 < width < math.inf:
        raise ValueError(f"width must be a positive factor, got {width!r}")


def width_of(layers: Iterable[tuple[int, int]]) -> float | None:
    """Returns the width that gives layers their numbers of channels, or None if there is none.

    ``layers`` has the number of channels at width 1 and the number found, for each layer. Several
    widths give the same numbers because these are rounded. The result is 1 if that fits, else the
    fitting width with the fewest decimals.

    >>> width_of([(64, 8), (256, 24), (2048, 208)])
    0.1
    """
    pairs = list(layers)

    def fits(width: float) -> bool:
        return width > 0 and all(scaled(full, width) == found for full, found in pairs)

    if fits(1.0):
        return 1.0
    # The largest layer says most about the width.
    full, found = max(pairs)
    for decimals in range(1, 7):
        near = found / full
        step = 10.0**-decimals
        # All numbers with so many decimals that can be rounded to this layer's channels.
        reach = math.ceil(MULTIPLE / full / step)
        candidates = [round(near + k * step, decimals) for k in range(-reach, reach + 1)]
        fitting = [width for width in candidates if fits(width)]
        if fitting:
            return min(fitting, key=lambda width: abs(width - near))
    return None
