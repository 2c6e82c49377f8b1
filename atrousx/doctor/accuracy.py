"""When a result is right.

An error is a Euclidean norm, of the difference to float64's result. It may be twice that of
PyTorch's operator in the same dtype on the same device, or two roundings of the exact result where
PyTorch's happens to be smaller. Where PyTorch has no such operator it may be two roundings of the
result, and for each of the ``length`` terms that an output sums one of the dtype that sums them:
float32 for half types and TF32, else the dtype itself. Integers must be equal. NaN is never right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# TF32 keeps 10 bits behind the leading one.
_EPSILON = {
    "float64": torch.finfo(torch.float64).eps,
    "float32": torch.finfo(torch.float32).eps,
    "tf32": 2.0**-10,
    "float16": torch.finfo(torch.float16).eps,
    "bfloat16": torch.finfo(torch.bfloat16).eps,
}


def error_of(result: Tensor, exact: Tensor) -> float:
    """The norm of the difference; of integers how many differ."""
    if result.shape != exact.shape:
        return math.inf
    here = result.detach().to("cpu")
    if not exact.is_floating_point():
        return float((here != exact).sum())
    if exact.numel() == 0:
        return 0.0
    return float((here.double() - exact).norm())


def allowed_error(dtype: str, length: int, exact: Tensor, torchs: float | None) -> float:
    """The largest error that is right; ``torchs`` is that of PyTorch's operator, if there is one.

    A PyTorch that fails, or gives NaN, is no measure.
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
    """The pair (error, allowed) that is furthest beyond what is allowed, NaN above all."""

    def excess(pair: tuple[float, float]) -> float:
        error, allowed = pair
        if math.isnan(error):
            return math.inf
        return 0.0 if error == 0 else error / allowed if allowed > 0 else math.inf

    return max(errors, key=excess, default=(0.0, 0.0))
