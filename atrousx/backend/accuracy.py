"""Whether two results of one convolution agree: atrousx's error held against PyTorch's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .geometry import Geometry

_WORST = 8  # how many times the root mean square of errors the largest may be
_TF32_EPSILON = 2.0**-10
_FLOAT32_EPSILON = torch.finfo(torch.float32).eps


class Agreement(NamedTuple):
    agrees: bool
    error: float  # the root mean square of the difference, over that of the result
    allowed: float


def allowed_error(geometry: Geometry) -> float:
    """What rounding alone may come to, as a part of the result, of independent random numbers.

    ``e_product + e_sum (4 + sqrt(terms))``: a running sum of n terms has the size of sqrt(n) and
    is rounded n times. Half types are summed in float32, and their results rounded once; TF32
    rounds factors.
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
    """Whether atrousx's result is as right as PyTorch's.

    Where the two differ by no more than rounding allows, it is. Where they differ by more,
    float64 judges: atrousx's error may be twice PyTorch's, as everywhere. ``exact`` computes that;
    it is called in this case alone, and where PyTorch has no result.
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
    """Root mean square and maximum of a difference, as parts of those of the reference.

    Infinite where shapes differ or one result is not finite.
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
