"""Searches the dense CRF's parameters on labelled photographs."""

from .search import (
    IGNORED,
    Counts,
    FixedOptions,
    Grid,
    Round,
    Sample,
    Setting,
    best_setting,
    coarse_to_fine,
    confusions,
    mean_iou,
)

__all__ = [
    "IGNORED",
    "Counts",
    "FixedOptions",
    "Grid",
    "Round",
    "Sample",
    "Setting",
    "best_setting",
    "coarse_to_fine",
    "confusions",
    "mean_iou",
]
