"""Means and standard errors over the seeds, as the lines of CSV files."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from .tables import Variant

Row = dict[str, Any]
Result = dict[str, Any]
TRIMAP_WIDTHS = (1, 2, 3, 5, 10, 15, 20, 30, 40)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean and its standard error, NaN for a single value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.nan
    return mean, statistics.stdev(values) / math.sqrt(len(values))


def lines(
    variant: Variant, results: Sequence[Result], pick: Callable[[Result], float]
) -> Iterator[tuple[str, Row]]:
    """Yields each view's name, and columns with mean and standard error in percent."""
    for view in results[0]["views"]:
        values = [100 * pick(result["views"][view]) for result in results]
        mean, error = mean_and_error(values)
        yield (
            view,
            {
                "variant": variant.name,
                "view": view,
                "seeds": len(values),
                "mean_iou": f"{mean:.2f}",
                "standard_error": "" if math.isnan(error) else f"{error:.2f}",
            },
        )


def rows(variant: Variant, results: Sequence[Result], images_per_s: float) -> Iterator[Row]:
    """Yields a line for each view: the mean IoU, and what was trained."""
    recipe = variant.recipe
    for view, row in lines(variant, results, _mean_iou):
        for name in results[0]["views"][view]["iou"]:
            values = [100 * result["views"][view]["iou"][name] for result in results]
            row[name.replace(" ", "_")] = f"{statistics.fmean(values):.2f}"
        yield {
            **row,
            "parameters": results[0]["parameters"],
            "images_per_s": f"{images_per_s:.3g}",
            "iterations": recipe.iterations,
            "batch": recipe.batch_size,
            "extent": recipe.crop[0],
            "width": recipe.width,
        }


def _mean_iou(view: Result) -> float:
    return float(view["mean_iou"])


def trimap_rows(variant: Variant, results: Sequence[Result]) -> Iterator[Row]:
    """Yields a line for each view and width of the trimap."""
    for width in map(str, TRIMAP_WIDTHS):
        for _, row in lines(variant, results, partial(_in_trimap, width)):
            yield {**row, "trimap_width": width}


def _in_trimap(width: str, view: Result) -> float:
    return float(view["trimap"][width])
