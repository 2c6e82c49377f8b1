"""Decides whether atrousx's result of a convolution agrees with PyTorch's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .geometry import Geometry

_WORST = 8  # the largest error may be this many times the allowed root mean square error
_TF32_EPSILON = 2.0**-10
_FLOAT32_EPSILON = torch.finfo(torch.float32).eps


class Agreement(NamedTuple):
    agrees: bool
    error: float  # the root mean square of the difference, relative to the result's
    allowed: float


def allowed_error(geometry: Geometry) -> float:
    """Returns the relative error that rounding alone explains, for independent random numbers.

    It is ``e_product + e_sum (4 + sqrt(terms))``. A running sum of n terms has a size of sqrt(n)
    and is rounded n times. Half types are summed in float32 and their results are rounded once.
    TF32 rounds the factors.
    """
    dtype: torch.dtype = getattr(torch, geometry.dtype)
    epsilon = torch.finfo(dtype).eps
    product = 0.0
    if dtype in (torch.float16, torch.bfloat16):
        product, epsilon = epsilon, _FLOAT32_EPSILON
    elif geometry.options.allow_tf32:
        product = 2 * _TF32_EPSILON
    return product + epsilon * (4 + math.sqrt(geometry.terms))


def compare(
    native: Tensor, by_torch: Tensor | None, geometry: Geometry, exact: Callable[[], Tensor]
) -> Agreement:
    """Decides whether atrousx's result is as accurate as PyTorch's.

    It is if the two differ by no more than rounding explains. Otherwise both are compared with the
    float64 result: atrousx's error may be at most twice PyTorch's. ``exact`` computes the float64
    result. It is called only in this case, or if PyTorch has no result.
    """
    allowed = allowed_error(geometry)
    error = math.inf
    if by_torch is not None:
        error, worst = difference(native, by_torch)
        if error <= allowed and worst <= _WORST * allowed:
            return Agreement(True, error, allowed)
    truth = exact()
    own_error, own_worst = difference(native, truth)
    if by_torch is None:
        return Agreement(own_error <= allowed, own_error, allowed)
    other_error, other_worst = difference(by_torch, truth)
    agrees = own_error <= max(2 * other_error, allowed) and own_worst <= max(
        2 * other_worst, _WORST * allowed
    )
    return Agreement(agrees, own_error, max(2 * other_error, allowed))


def difference(result: Tensor, reference: Tensor) -> tuple[float, float]:
    """Returns root mean square and maximum of the difference, relative to those of the reference.

    Both are infinite if the shapes differ or a value is not finite.
    """
    if result.shape != reference.shape:
        return math.inf, math.inf
    if result.numel() == 0:
        return 0.0, 0.0
    wide = torch.float64 if torch.float64 in (result.dtype, reference.dtype) else torch.float32
    reference = reference.to(wide)
    error = result.to(wide).sub(reference)
    norms = [t.square().mean().sqrt() for t in (error, reference)]
    peaks = [t.abs().max() for t in (error, reference)]
    numbers = torch.stack([*norms, *peaks]).tolist()
    if not all(map(math.isfinite, numbers)):
        return math.inf, math.inf
    error_norm, norm, error_peak, peak = numbers
    if norm == 0:
        return (0.0, 0.0) if error_peak == 0 else (math.inf, math.inf)
    return error_norm / norm, error_peak / peak
