"""Probabilities of upsampled logits by their definition, in float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tests.reference import upsample_bilinear2d

Array = NDArray[np.float64]


def probabilities(
    logits: Array, size: tuple[int, int], flip: bool = False, align_corners: bool = False
) -> Array:
    values = upsample_bilinear2d.forward(logits, size, align_corners)
    if flip:
        values = values[..., ::-1]
    exponentials = np.exp(values - values.max(1, keepdims=True))
    result: Array = exponentials / exponentials.sum(1, keepdims=True)
    return result
