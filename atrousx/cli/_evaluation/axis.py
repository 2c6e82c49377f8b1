"""The axes of the trimap's plot, in shares of the plot's width and height."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

Curve = Sequence[tuple[int, float]]  # width in pixels, mean IoU from 0 to 1


class Axis(NamedTuple):
    """Widths from 0 to ``widest``; mean IoU in % from ``low`` to ``high`` with lines at steps."""

    widest: int
    low: float
    high: float
    step: float

    @classmethod
    def of(cls, curves: Sequence[tuple[str, Curve]]) -> Axis:
        """Returns axes that hold all curves, with four to nine lines."""
        values = [100 * value for _, curve in curves for _, value in curve]
        rough = max(max(values) - min(values), 1.0) / 4
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
        low, high = math.floor(min(values) / step), math.ceil(max(values) / step)
        # A flat curve on a line also gets room.
        high += high == low
        widest = max(width for _, curve in curves for width, _ in curve)
        return cls(widest, step * low, step * high, step)

    def values(self) -> list[float]:
        lines = round((self.high - self.low) / self.step) + 1
        return [self.low + self.step * line for line in range(lines)]

    def widths(self) -> list[int]:
        return list(range(0, self.widest + 1, max(1, self.widest // 4)))

    def across(self, width: float) -> float:
        return width / self.widest

    def up(self, value: float) -> float:
        return (value - self.low) / (self.high - self.low)

    def ends(self, curves: Sequence[tuple[str, Curve]], least: float) -> list[float]:
        """Returns the heights of the curves' names: where they end, but ``least`` apart."""
        places = [self.up(100 * curve[-1][1]) for _, curve in curves]
        if len(places) == 2 and abs(places[0] - places[1]) < least:
            middle, sign = sum(places) / 2, 1 if places[0] >= places[1] else -1
            return [middle + sign * least / 2, middle - sign * least / 2]
        return places
