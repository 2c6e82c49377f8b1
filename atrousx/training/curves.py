"""Draws the curves of a training from its log."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from .watch import read_log

CURVES = "curves.png"


def draw_curves(folder: Path) -> Path | None:
    """Draws loss, learning rate and mean IoU into ``curves.png``; None without matplotlib."""
    try:
        figures: Any = importlib.import_module("matplotlib.figure")
    except ImportError:
        return None
    log = read_log(folder)
    losses = [line for line in log if line["event"] == "loss"]
    evaluations = [line for line in log if line["event"] == "evaluation"]
    rows = 3 if evaluations else 2
    figure = figures.Figure(figsize=(7, 2.2 * rows), layout="constrained")
    axes = figure.subplots(rows, 1, sharex=True)
    _draw(axes[0], losses, "loss", "loss")
    _draw(axes[1], losses, "lr", "learning rate")
    if evaluations:
        percent = [{**line, "mean_iou": 100 * (line["mean_iou"] or 0)} for line in evaluations]
        _draw(axes[2], percent, "mean_iou", "mean IoU, %", "o-")
    axes[-1].set_xlabel("iteration")
    path = folder / CURVES
    figure.savefig(path, dpi=120)
    return path


def _draw(axis: Any, lines: list[dict[str, Any]], name: str, label: str, style: str = "-") -> None:
    iterations = [line["iteration"] for line in lines]
    axis.plot(iterations, [line[name] for line in lines], style, markersize=4, linewidth=1.4)
    axis.set_ylabel(label)
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
