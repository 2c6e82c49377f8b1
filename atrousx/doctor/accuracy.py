"""Defines when a result is right.

The error is the Euclidean norm of the difference from the float64 result. It may be twice the error
of PyTorch's operator in the same dtype on the same device. It may also be two roundings of the
exact result, if that is larger.

If PyTorch has no such operator, the error may be two roundings of the result, plus one rounding of
the accumulator's dtype for each of the ``length`` terms that an output sums. This dtype is float32
for float32, half types and TF32, and float64 for float64. Integers must be equal. NaN is never
right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# TF32 has 10 mantissa bits after the leading one.
_EPSILON = {
    "float64": torch.finfo(torch.float64).eps,
    "float32": torch.finfo(torch.float32).eps,
    "tf32": 2.0**-10,
    "float16": torch.finfo(torch.float16).eps,
    "bfloat16": torch.finfo(torch.bfloat16).eps,
}


def error_of(result: Tensor, exact: Tensor) -> float:
    """Returns the norm of the difference; for integers the number of elements that differ."""
    if result.shape != exact.shape:
        return math.inf
    here = result.detach().to("cpu")
    if not exact.is_floating_point():
        return float((here != exact).sum())
    if exact.numel() == 0:
        return 0.0
    return float((here.double() - exact).norm())


def allowed_error(dtype: str, length: int, exact: Tensor, torchs: float | None) -> float:
    """Returns the largest allowed error; ``torchs`` is the error of PyTorch's operator, if any.

    ``torchs`` is ignored if it is not finite.
    """
    if not exact.is_floating_point():
        return 0.0
    size = float(exact.norm())
    roundings = 2 * _EPSILON[dtype]
    if torchs is not None and math.isfinite(torchs):
        return max(roundings * size, 2 * torchs)
    summing = "float64" if dtype == "float64" else "float32"
    return (roundings + length * _EPSILON[summing]) * size


def worst(errors: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Returns the pair (error, allowed) with the largest quotient; NaN counts as infinite."""

    def excess(pair: tuple[float, float]) -> float:
        error, allowed = pair
        if math.isnan(error):
            return math.inf
        return 0.0 if error == 0 else error / allowed if allowed > 0 else math.inf

    return max(errors, key=excess, default=(0.0, 0.0))
