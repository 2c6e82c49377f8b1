"""Bilinear resampling by its definition, in float64: a dense matrix per axis."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def axis_matrix(
    size_in: int, size_out: int, align_corners: bool, scale_factor: float | None = None
) -> Array:
    """Returns the [size_out, size_in] matrix of one axis: each row has an output's two weights."""
    matrix = np.zeros((size_out, size_in))
    for o in range(size_out):
        if align_corners:
            x = o * (size_in - 1) / (size_out - 1) if size_out > 1 else 0.0
        else:
            scale = 1 / scale_factor if scale_factor is not None else size_in / size_out
            x = max(0.0, (o + 0.5) * scale - 0.5)
        left = min(int(np.floor(x)), size_in - 1)
        right = min(left + 1, size_in - 1)
        weight = min(max(x - left, 0.0), 1.0)
        matrix[o, left] += 1 - weight
        matrix[o, right] += weight
    return matrix


def forward(
    input: Array,
    size: tuple[int, int],
    align_corners: bool,
    scale_factor: tuple[float | None, float | None] = (None, None),
) -> Array:
    rows = axis_matrix(input.shape[2], size[0], align_corners, scale_factor[0])
    columns = axis_matrix(input.shape[3], size[1], align_corners, scale_factor[1])
    result: Array = np.einsum("oh,nchw,pw->ncop", rows, input.astype(np.float64), columns)
    return result


def backward(
    grad_output: Array,
    size: tuple[int, int],
    align_corners: bool,
    scale_factor: float | None = None,
) -> Array:
    rows = axis_matrix(size[0], grad_output.shape[2], align_corners, scale_factor)
    columns = axis_matrix(size[1], grad_output.shape[3], align_corners, scale_factor)
    result: Array = np.einsum("oh,ncop,pw->nchw", rows, grad_output.astype(np.float64), columns)
    return result
