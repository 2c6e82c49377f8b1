"""Plots of an evaluation as images, drawn with OpenCV."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...data import Image, opencv
from ...metrics import ConfusionMatrix
from .._drawing import INK, PAPER, text_width, write
from .axis import Axis, Curve
from .results import percent

Colour = tuple[int, int, int]
CELL, GAP, SIZE = 46, 14, 0.42  # pixels, pixels, of letters
GREY, BLUE, ORANGE = (225, 225, 225), (0, 99, 166), (196, 82, 12)


def confusion_plot(confusion: ConfusionMatrix, classes: Sequence[str], title: str) -> Image:
    """Returns the matrix ``[H, W, 3]``: rows are true classes, numbers are % of their pixels."""
    shares = (confusion.matrix.double() / confusion.matrix.sum(1, keepdim=True)).tolist()
    margin = max(text_width(name, SIZE) for name in classes) + 2 * GAP
    extent = CELL * len(classes)
    top = margin + 40
    width = max(margin + extent + GAP, text_width(title, 0.55) + 2 * GAP)
    image = np.full((top + extent + GAP, width, 3), PAPER, np.uint8)
    write(image, title, (GAP, 26), 0.55)
    for label, name in enumerate(classes):
        place = CELL * label + CELL // 2 + 5
        write(image, name, (margin - GAP // 2 - text_width(name, SIZE), top + place), SIZE)
        _write_upwards(image[:top, margin + CELL * label : margin + CELL * (label + 1)], name)
    for true, row in enumerate(shares):
        for predicted, share in enumerate(row):
            y, x = top + CELL * true, margin + CELL * predicted
            _fill(image[y : y + CELL, x : x + CELL], share, BLUE if true == predicted else ORANGE)
    return image


def _write_upwards(column: Image, name: str) -> None:
    turned = np.ascontiguousarray(np.rot90(column, -1))
    write(turned, name, (GAP // 2, CELL // 2 + 5), SIZE)
    column[:] = np.rot90(turned)


def _fill(cell: Image, share: float, colour: Colour) -> None:
    """Colours a cell; the share of a class without pixels is NaN."""
    cell[:] = GREY
    inner = cell[1:, 1:]
    strength = 0.0 if np.isnan(share) else np.sqrt(share)
    inner[:] = np.rint((1 - strength) * PAPER + strength * np.array(colour))
    if share >= 0.005:
        text = percent(share, 0)
        ink = (255, 255, 255) if strength > 0.6 else INK
        write(cell, text, ((CELL - text_width(text, SIZE)) // 2, CELL // 2 + 5), SIZE, ink)


HEIGHT, WIDTH = 420, 640
LEFT, RIGHT, TOP, BOTTOM = 56, 130, 52, 56


def trimap_plot(curves: Sequence[tuple[str, Curve]], title: str) -> Image:
    """Returns the plot ``[H, W, 3]`` of mean IoU in % over the width of the band."""
    axis = Axis.of(curves)
    width = max(WIDTH, text_width(title, 0.55) + 2 * GAP)
    image = np.full((HEIGHT, width, 3), PAPER, np.uint8)
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def place(w: float, value: float) -> tuple[int, int]:
        across, up = axis.across(w), axis.up(value)
        return round(LEFT + across * (right - LEFT)), round(bottom - up * (bottom - TOP))

    write(image, title, (GAP, 28), 0.55)
    for value in axis.values():
        _, y = place(0, value)
        image[y, LEFT:right] = GREY
        write(image, f"{value:g}", (LEFT - 8 - text_width(f"{value:g}", SIZE), y + 5), SIZE)
    for w in axis.widths():
        x, _ = place(w, axis.low)
        write(image, str(w), (x - text_width(str(w), SIZE) // 2, bottom + 20), SIZE)
    label = "width of the band in pixels"
    write(image, label, ((LEFT + right - text_width(label, SIZE)) // 2, bottom + 44), SIZE)
    ends = axis.ends(curves, 16 / (bottom - TOP))
    for number, ((name, curve), end) in enumerate(zip(curves, ends, strict=True)):
        colour = BLUE if number == len(curves) - 1 else ORANGE
        points = np.array([place(w, 100 * value) for w, value in curve], np.int32)
        opencv().polylines(image, [points], False, colour, 2, opencv().LINE_AA)
        at = (int(points[-1][0]) + 8, round(bottom - end * (bottom - TOP)) + 5)
        write(image, name, at, SIZE, colour)
    return image
