"""Charts of the page as inline SVG. Their colours are variables of the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from ...data import voc_palette
from ...metrics import ConfusionMatrix
from .axis import Axis, Curve
from .results import percent

CELL, LETTER = 22, 6.6  # pixels of a cell, and of a letter in the confusion matrix
FAINTEST = 0.005  # smaller shares are not drawn


def colour(label: int) -> str:
    """Returns the colour of a class in PASCAL VOC's palette."""
    return "#{:02x}{:02x}{:02x}".format(*voc_palette()[label])


def bar(value: float, before: float | None, label: int) -> str:
    """Returns a bar from 0 to 1, with a tick at the value before the CRF."""
    if math.isnan(value):
        return ""
    tick = ""
    if before is not None and not math.isnan(before):
        at = f"{100 * before:.2f}%"
        tick = f'<line x1="{at}" x2="{at}" y1="0" y2="100%" class="tick"/>'
    return (
        '<svg class="bar" aria-hidden="true" focusable="false">'
        '<rect width="100%" height="100%" rx="2" class="track"/>'
        f'<rect width="{100 * value:.2f}%" height="100%" rx="2" class="full" '
        f'fill="{colour(label)}"/>'
        f"{tick}</svg>"
    )


def confusion_matrix(confusion: ConfusionMatrix, classes: Sequence[str]) -> str:
    """Returns the matrix, true classes downwards, as shares of the pixels of the true class."""
    shares = confusion.matrix.double() / confusion.matrix.sum(1, keepdim=True)
    margin = round(LETTER * max(map(len, classes))) + 14
    side = margin + CELL * len(classes) + 1
    parts = [
        f'<svg class="matrix" viewBox="0 0 {side} {side}" '
        f'style="min-width:{round(0.8 * side)}px;max-width:{round(1.4 * side)}px" '
        'role="img" aria-label="Confusion matrix; the table beside it lists the largest entries">'
    ]
    for label, name in enumerate(classes):
        middle = margin + CELL * label + CELL // 2
        parts.append(
            f'<text x="{margin - 7}" y="{middle + 4}" text-anchor="end">{escape(name)}</text>'
            f'<text transform="translate({middle + 4} {margin - 7}) rotate(-90)">{escape(name)}'
            "</text>"
        )
    for true, row in enumerate(shares.tolist()):
        for predicted, share in enumerate(row):
            if share >= FAINTEST:
                parts.append(_cell(margin, true, predicted, share, classes))
    parts.append(f'<path class="grid" d="{_grid(margin, len(classes))}"/></svg>')
    return "".join(parts)


def _cell(margin: int, true: int, predicted: int, share: float, classes: Sequence[str]) -> str:
    x, y = margin + CELL * predicted, margin + CELL * true
    kind = "right" if true == predicted else "wrong"
    # The square root makes small shares visible.
    return (
        f'<rect x="{x}" y="{y}" width="{CELL}" height="{CELL}" class="{kind}" '
        f'fill-opacity="{math.sqrt(share):.2f}"><title>{escape(classes[true])} labelled '
        f"{escape(classes[predicted])}: {percent(share, 1)} %</title></rect>"
    )


def _grid(margin: int, classes: int) -> str:
    end = margin + CELL * classes
    lines = (margin + CELL * line for line in range(classes + 1))
    return "".join(f"M{margin} {at}H{end}M{at} {margin}V{end}" for at in lines)


WIDTH, HEIGHT = 420, 260
LEFT, RIGHT, TOP, BOTTOM = 40, 84, 12, 40


def trimap(curves: Sequence[tuple[str, Curve]]) -> str:
    """Returns mean IoU over the width of the band, one line for each curve."""
    axis = Axis.of(curves)
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def x(width: float) -> float:
        return LEFT + (right - LEFT) * axis.across(width)

    def y(height: float) -> float:
        return bottom - (bottom - TOP) * height

    parts = [
        f'<svg class="curve" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'aria-label="Trimap curve; the table beside it lists the values">'
    ]
    for value in axis.values():
        at = y(axis.up(value))
        parts.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{right}"/>')
        parts.append(_text(LEFT - 6, at + 4, "end", f"{value:g}"))
    parts += [_text(x(width), bottom + 17, "middle", str(width)) for width in axis.widths()]
    parts.append(_text((LEFT + right) / 2, HEIGHT - 4, "middle", "width of the band in pixels"))
    ends = axis.ends(curves, 14 / (bottom - TOP))
    for number, ((title, curve), end) in enumerate(zip(curves, ends, strict=True)):
        points = " ".join(f"{x(width):.1f},{y(axis.up(100 * v)):.1f}" for width, v in curve)
        kind = "line final" if number == len(curves) - 1 else "line before"
        parts.append(f'<polyline class="{kind}" points="{points}"/>')
        parts.append(_text(x(curve[-1][0]) + 6, y(end) + 4, "start", title, kind))
    return "".join(parts) + "</svg>"


def _text(x: float, y: float, anchor: str, text: str, kind: str = "") -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )
