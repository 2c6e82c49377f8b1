"""The numbers of an evaluation, as JSON and as a table of text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from ...metrics import Evaluation, Measures

ABSENT = "Classes that neither occur nor are predicted are left out of the means."
NO_TRUTH = "Every pixel of the truth is ignored (255), so nothing was measured."
NO_VOID = "The truth has no ignored pixels (255) beside others, so the trimap curve is NaN."
# Widths of the trimap's bands that tables show.
SHOWN_WIDTHS = (1, 5, 10, 20, 40)


class Results(NamedTuple):
    """An evaluation, and what it is of."""

    classes: Sequence[str]
    evaluation: Evaluation
    settings: Mapping[str, object]  # what was evaluated and how, in the words of the options


class Column(NamedTuple):
    """One measure of all classes, and its mean."""

    title: str
    values: Sequence[float]
    mean: float


def percent(value: float, digits: int = 2) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.{digits}f}"


def columns(evaluation: Evaluation) -> list[Column]:
    """Returns what is known of each class; after the CRF if there is one."""
    before, final = evaluation.labels, evaluation.final
    found = [_iou("IoU", before)]
    if evaluation.refined is not None:
        found = [_iou("IoU with CRF", final), _iou("IoU before CRF", before)]
    matrix = final.confusion
    accuracies = matrix.class_accuracy().tolist()
    found.append(Column("accuracy", accuracies, matrix.mean_accuracy()))
    if final.boundary is not None:
        values = final.boundary.iou().tolist()
        found.append(Column("boundary IoU", values, final.boundary.mean_iou()))
    return found


def _iou(title: str, measures: Measures) -> Column:
    confusion = measures.confusion
    return Column(title, confusion.iou().tolist(), confusion.mean_iou())


def text_table(results: Results) -> str:
    """Returns the table for the terminal; numbers are per cent."""
    evaluation, found = results.evaluation, columns(results.evaluation)
    wide = max(len(name) for name in (*results.classes, "frequency-weighted IoU"))
    lines = [f"{evaluation.images} images, {len(results.classes)} classes; numbers in %", ""]
    lines.append(" " * wide + "".join(f"{c.title:>{_width(c)}}" for c in found))
    for label, name in enumerate(results.classes):
        cells = "".join(f"{percent(c.values[label]):>{_width(c)}}" for c in found)
        lines.append(f"{name:{wide}}{cells}")
    lines.append(f"{'mean':{wide}}" + "".join(f"{percent(c.mean):>{_width(c)}}" for c in found))
    confusion, first = evaluation.final.confusion, _width(found[0])
    lines.append("")
    lines.append(f"{'pixel accuracy':{wide}}{percent(confusion.accuracy()):>{first}}")
    weighted = percent(confusion.frequency_weighted_iou())
    lines.append(f"{'frequency-weighted IoU':{wide}}{weighted:>{first}}")
    lines += _trimap_lines(evaluation)
    if not confusion.matrix.any():
        lines += ["", NO_TRUTH]
    elif any(math.isnan(value) for value in found[0].values):
        lines += ["", ABSENT]
    return "\n".join(lines)


def _width(column: Column) -> int:
    return max(len(column.title), 6) + 2


def _trimap_lines(evaluation: Evaluation) -> list[str]:
    curves = trimap_curves(evaluation)
    if not curves:
        return []
    if not any(curve for _, curve in curves):
        return ["", NO_VOID]
    lines = ["", "trimap, mean IoU within" + "".join(f"{f'{w} px':>8}" for w in SHOWN_WIDTHS)]
    for title, curve in curves:
        found = dict(curve)
        cells = (percent(found.get(width, math.nan)) for width in SHOWN_WIDTHS)
        lines.append(f"{title:23}" + "".join(f"{cell:>8}" for cell in cells))
    return lines


def trimap_curves(evaluation: Evaluation) -> list[tuple[str, list[tuple[int, float]]]]:
    """Returns title and points (width, mean IoU) of each curve, without bands of no pixels."""
    found = []
    named = (("before CRF" if evaluation.refined else "network", evaluation.labels),)
    for title, measures in (*named, ("with CRF", evaluation.refined)):
        if measures is not None and measures.trimap is not None:
            pairs = zip(measures.trimap.widths, measures.trimap.mean_iou().tolist(), strict=True)
            found.append((title, [(w, value) for w, value in pairs if not math.isnan(value)]))
    return found


def as_json(results: Results) -> dict[str, object]:
    """Returns the numbers as JSON's types; shares are from 0 to 1, unknown ones are null."""
    evaluation, classes = results.evaluation, results.classes
    return {
        "settings": dict(results.settings),
        "images": evaluation.images,
        "classes": list(classes),
        "before_crf" if evaluation.refined else "network": _numbers(evaluation.labels, classes),
        **({"with_crf": _numbers(evaluation.refined, classes)} if evaluation.refined else {}),
        "absent_classes": ABSENT,
    }


def _numbers(measures: Measures, classes: Sequence[str]) -> dict[str, object]:
    confusion = measures.confusion
    found: dict[str, object] = {
        "mean_iou": _known(confusion.mean_iou()),
        "pixel_accuracy": _known(confusion.accuracy()),
        "mean_accuracy": _known(confusion.mean_accuracy()),
        "frequency_weighted_iou": _known(confusion.frequency_weighted_iou()),
        "iou": _by_class(classes, confusion.iou()),
        "accuracy": _by_class(classes, confusion.class_accuracy()),
        "confusion_matrix": confusion.matrix.tolist(),
    }
    if measures.boundary is not None:
        found["boundary_mean_iou"] = _known(measures.boundary.mean_iou())
        found["boundary_iou"] = _by_class(classes, measures.boundary.iou())
    if measures.trimap is not None:
        means = map(_known, measures.trimap.mean_iou().tolist())
        found["trimap_mean_iou"] = dict(zip(measures.trimap.widths, means, strict=True))
    return found


def _by_class(classes: Sequence[str], values: Tensor) -> dict[str, float | None]:
    return dict(zip(classes, map(_known, values.tolist()), strict=True))


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
