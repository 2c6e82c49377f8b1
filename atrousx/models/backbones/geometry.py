"""Strides and atrous rates of a backbone at another output stride, with the same weights."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import NamedTuple, Protocol


class Unit(Protocol):
    """A part of a backbone that may have a stride.

    Attributes:
        stride: of the unit now.
        rate: atrous rate of its 3x3 convolutions now.
        stride_first: whether the stride comes before these convolutions.
    """

    stride: int
    stride_first: bool

    @property
    def rate(self) -> int: ...

    def set_geometry(self, stride: int, rate: int) -> None:
        """Gives the unit another stride and atrous rate; the parameters do not change."""


class Change(NamedTuple):
    """A unit, with its stride and rate at another output stride."""

    unit: Unit
    stride: int
    rate: int


class Backbone(Protocol):
    """A network whose features a head reads.

    Attributes:
        stem_stride: image pixels per feature before the first unit.
    """

    stem_stride: int

    def units(self) -> Iterable[tuple[Unit, int]]:
        """Returns the units in order, each with its stride in the classification network."""


def plan_output_stride(backbone: Backbone, output_stride: int) -> tuple[list[Change], Fraction]:
    """Returns each unit's stride and rate at an output stride, and how much denser the result is.

    A stride that is removed doubles the rates of all later layers, so that the denser features
    contain the sparser ones.
    """
    plan, reached, factor = [], backbone.stem_stride, Fraction(1)
    for unit, wanted in backbone.units():
        # With the stride on the 3x3, the 3x3 still reads a map as dense as the unit's input. With
        # the stride before it, it reads a map as dense as the unit's result.
        before = factor
        stride = wanted if reached * wanted <= output_stride else 1
        reached *= stride
        factor *= Fraction(unit.stride, stride)
        density = factor if unit.stride_first else before
        plan.append(Change(unit, stride, scaled_rate(unit.rate, density)))
    return plan, factor


def apply_plan(plan: Iterable[Change]) -> None:
    for unit, stride, rate in plan:
        unit.set_geometry(stride, rate)


def scaled_rate(rate: int, factor: Fraction) -> int:
    scaled = rate * factor
    if scaled.denominator != 1:
        raise ValueError(
            f"output_stride would need the atrous rate {rate} times {factor}, which is not whole"
        )
    return scaled.numerator
