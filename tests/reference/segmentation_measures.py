"""Measures of segmentation by their definitions, pixel by pixel or mask by mask, in NumPy."""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]
Mask = NDArray[np.bool_]


def grown(mask: Mask, steps: int) -> Mask:
    """The mask and the pixels that ``steps`` dilations with a 3x3 square add to it."""
    for _ in range(steps):
        wide = np.pad(mask, 1)
        height, width = mask.shape
        mask = np.zeros_like(mask)
        for dy, dx in itertools.product(range(3), repeat=2):
            mask |= wide[dy : dy + height, dx : dx + width]
    return mask


def mean_of_present(ious: list[float]) -> float:
    found = [value for value in ious if not math.isnan(value)]
    return sum(found) / len(found) if found else math.nan


def ious(predicted: Labels, true: Labels, where: Mask, classes: int) -> list[float]:
    found = []
    for label in range(classes):
        one, other = (predicted == label) & where, (true == label) & where
        union = int((one | other).sum())
        found.append(int((one & other).sum()) / union if union else math.nan)
    return found


def trimap_mean_iou(
    predicted: Labels, true: Labels, width: int, classes: int, void: int = 255
) -> float:
    ignored = true == void
    band = grown(ignored, width) & ~ignored
    return mean_of_present(ious(predicted, true, band, classes))


def near_contour(mask: Mask, distance: int) -> Mask:
    """The mask without what erosions leave of it; outside the image nothing belongs to it."""
    outside = np.pad(~mask, distance, constant_values=True)
    inner = slice(distance, -distance)
    return mask & grown(outside, distance)[inner, inner]


def boundary_counts(
    predicted: Labels, true: Labels, classes: int, ratio: float, void: int = 255
) -> tuple[list[int], list[int]]:
    """Intersections and unions of each class."""
    distance = max(1, round(ratio * math.sqrt(true.shape[0] ** 2 + true.shape[1] ** 2)))
    intersections, unions = [], []
    for label in range(classes):
        one, other = (near_contour(found == label, distance) for found in (predicted, true))
        intersections.append(int((one & other & (true != void)).sum()))
        unions.append(int(((one | other) & (true != void)).sum()))
    return intersections, unions
