"""Draws a search: mean IoU over the sigmas, one panel for each weight, rows of panels by round."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..crf import Grid, Round, Setting
from ..data import Image, opencv
from ._drawing import PAPER, text_width, write

CELL_WIDTH, CELL_HEIGHT = 60, 34
LEFT, TOP, BOTTOM, GAP = 64, 34, 46, 14
PANELS_PER_ROW = 4


def draw_heat_maps(rounds: Sequence[Round], best: Setting, title: str) -> Image:
    """Returns an image ``[H, W, 3]`` with every round's mean IoU in %. The best has a frame.

    All panels use the same scale of colours.
    """
    scores = [score for done in rounds for score in done.scores.values()]
    low, high = min(scores), max(scores)
    rows = []
    for number, done in enumerate(rounds, 1):
        weights = done.grid.bilateral_weight
        for first in range(0, len(weights), PANELS_PER_ROW):
            shown = weights[first : first + PANELS_PER_ROW]
            rows.append(_columns([_panel(done, w, best, low, high) for w in shown]))
            heading = f"round {number}" if first == 0 else ""
            rows[-1] = np.pad(rows[-1], ((28, 0), (0, 0), (0, 0)), constant_values=PAPER)
            write(rows[-1], heading, (GAP, 20), 0.5)
    lines = [title, f"best, framed: w1 {best[0]:g}, sigma_xy {best[1]:g}, sigma_rgb {best[2]:g}"]
    width = max(row.shape[1] for row in rows)
    width = max([width, *(text_width(line, 0.55) + 2 * GAP for line in lines)])
    head = np.full((58, width, 3), PAPER, np.uint8)
    for place, line in enumerate(lines):
        write(head, line, (GAP, 24 + 24 * place), 0.55)
    return np.concatenate([head, *(_widened(row, width) for row in rows)])


def _panel(done: Round, weight: float, best: Setting, low: float, high: float) -> Image:
    """Returns the panel of one weight's mean IoU: sigma_xy to the right, sigma_rgb upwards."""
    grid: Grid = done.grid
    across, upwards = grid.bilateral_sigma_xy, grid.bilateral_sigma_rgb
    height, width = len(upwards) * CELL_HEIGHT, len(across) * CELL_WIDTH
    panel = np.full((TOP + height + BOTTOM, LEFT + width + GAP, 3), PAPER, np.uint8)
    write(panel, f"w1 = {weight:g}", (LEFT, TOP - 10), 0.5)
    for row, rgb in enumerate(reversed(upwards)):
        top = TOP + row * CELL_HEIGHT
        write(panel, f"{rgb:g}", (LEFT - 8 - text_width(f"{rgb:g}", 0.42), top + 22), 0.42)
        for column, xy in enumerate(across):
            setting = Setting(weight, xy, rgb)
            cell = panel[top : top + CELL_HEIGHT, LEFT + column * CELL_WIDTH :][:, :CELL_WIDTH]
            _fill(cell, done.scores[setting], low, high, framed=setting == best)
    for column, xy in enumerate(across):
        text = f"{xy:g}"
        middle = LEFT + column * CELL_WIDTH + (CELL_WIDTH - text_width(text, 0.42)) // 2
        write(panel, text, (middle, TOP + height + 16), 0.42)
    write(panel, "sigma_xy", (LEFT, TOP + height + 36), 0.42)
    write(panel, "sigma_rgb", (4, TOP - 10), 0.38)
    return panel


def _fill(cell: Image, score: float, low: float, high: float, framed: bool) -> None:
    level = 0.5 if high == low else (score - low) / (high - low)
    cv2 = opencv()
    colour = cv2.applyColorMap(np.array([[round(255 * level)]], np.uint8), cv2.COLORMAP_VIRIDIS)
    cell[:] = colour[0, 0, ::-1]
    text = f"{100 * score:.2f}"
    place = ((CELL_WIDTH - text_width(text, 0.42)) // 2, CELL_HEIGHT // 2 + 5)
    # The text is black on light colours and white on dark ones, so that it can be read.
    write(cell, text, place, 0.42, (0, 0, 0) if level > 0.6 else (255, 255, 255))
    if framed:
        cell[:3] = cell[-3:] = cell[:, :3] = cell[:, -3:] = (220, 30, 30)


def _columns(panels: Sequence[Image]) -> Image:
    return np.concatenate(panels, axis=1)


def _widened(row: Image, width: int) -> Image:
    return np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=PAPER)
