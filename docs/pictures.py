"""Draws the pictures of the documentation, each for light and for dark pages.

    python docs/pictures.py     # into docs/_generated/

The plots of the performance pages show what the CSV files hold.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import measurements
import numpy as np
import reproduction_tables
from performance import PASSES

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from atrousx.data import SCENE_CLASSES, voc_palette
from atrousx.data._scene import draw_scene

HERE = Path(__file__).resolve().parent
GENERATED = HERE / "_generated"
COPIED = ("benchmarks/demo/crf_iterations.png",)
sys.path.insert(0, str(measurements.ROOT / "benchmarks"))
from plot_rates import read_curves  # noqa: E402

# Text and lines, then four colours that colour-blind readers tell apart.
THEMES = {
    "light": ("#303236", ("#0063a6", "#d1580b", "#00805b", "#a3479c")),
    "dark": ("#c9ccd1", ("#6cb8f0", "#f4a261", "#4fc99a", "#dd9bd6")),
}
Draw = Callable[[], Figure]


def style(theme: str) -> dict[str, Any]:
    ink, colours = THEMES[theme]
    inked = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    return {
        **dict.fromkeys(inked, ink),
        "axes.prop_cycle": matplotlib.cycler(color=colours),
        "axes.facecolor": "none",
        "figure.facecolor": "none",
        "savefig.transparent": True,
        "legend.framealpha": 0.0,
        "grid.color": ink,
        "grid.alpha": 0.25,
        "font.size": 9,
        "lines.markersize": 5,
        "svg.hashsalt": "atrousx",
    }


def ink() -> str:
    return str(matplotlib.rcParams["text.color"])


def level_line(axes: Axes) -> None:
    axes.axvline(1, color=ink(), linewidth=1)
    axes.set_xscale("log")
    ticks = (0.5, 1, 2, 5, 10, 20, 50, 100)
    low, high = axes.get_xlim()
    axes.set_xticks(
        [t for t in ticks if low <= t <= high], [f"{t:g}" for t in ticks if low <= t <= high]
    )
    axes.minorticks_off()
    axes.grid(axis="x")


# Measurements.


def convolution(machine: str) -> Figure:
    rows = measurements.measured(machine, "atrous_conv2d")
    rows = [r for r in rows if not r["name"].startswith("sweep") and r["dtype"] == "float32"]
    most = max(rows, key=lambda r: int(r["threads"]))["threads"]
    rows = [r for r in rows if r["batch"] == "1" and r["threads"] == most]
    names = measurements.names(rows, "name")
    layouts = [f for f in measurements.LAYOUTS if any(r["memory_format"] == f for r in rows)]
    size = (8.2, 1.2 + 0.23 * len(names))
    figure, panels = plt.subplots(
        1, len(layouts), sharey=True, sharex=True, squeeze=False, figsize=size, layout="tight"
    )
    for axes, layout in zip(panels[0], layouts, strict=True):
        for (name, label), marker in zip(PASSES.items(), "osD^", strict=True):
            found = [r for r in rows if (r["memory_format"], r["pass"]) == (layout, name)]
            places = [names.index(r["name"]) for r in found]
            ratios = [float(r["ratio"]) for r in found]
            axes.plot(ratios, places, marker, alpha=0.85, label=label)
        axes.set(title=measurements.LAYOUTS[layout], xlabel="PyTorch's time / atrousx's")
        level_line(axes)
    panels[0][0].set_yticks(range(len(names)), names)
    panels[0][0].invert_yaxis()
    panels[0][-1].legend(loc="lower right")
    figure.suptitle(f"float32, batch 1, {measurements.threads(most)}", fontsize=9)
    return figure


def rates(machine: str) -> Figure:
    sweep = [
        r for r in measurements.measured(machine, "atrous_conv2d") if r["name"].startswith("sweep")
    ]
    curves = read_curves(sweep)
    figure, panels = plt.subplots(
        1, len(curves), sharey=True, squeeze=False, figsize=(8.2, 3.2), layout="tight"
    )
    for axes, (extent, of_map) in zip(panels[0], curves.items(), strict=True):
        for name, points in of_map.items():
            ideal = name == "ideal"
            options: dict[str, Any] = {"marker": "o", "label": measurements.LAYOUTS.get(name)}
            if ideal:
                options = {"linestyle": "--", "color": ink(), "label": "1 / live fraction"}
            axes.plot(*zip(*points, strict=True), **options)
        axes.axhline(1, color=ink(), linewidth=1)
        axes.set(title=f"{extent}x{extent} map", xlabel="dilation rate", ylim=(0, None))
        axes.grid()
    panels[0][0].set_ylabel("PyTorch's time / atrousx's")
    panels[0][0].legend()
    return figure


def upsampling(machine: str) -> Figure:
    rows = measurements.measured(machine, "upsample")
    operators = list(dict.fromkeys((r["operator"], r["pass"]) for r in rows))
    figure, axes = plt.subplots(figsize=(8.2, 3.4), layout="tight")
    kinds = measurements.groups(rows, "dtype", "memory_format")
    for place, ((dtype, layout), found) in enumerate(kinds.items()):
        offset = (place - (len(kinds) - 1) / 2) * 0.17
        places = [operators.index((r["operator"], r["pass"])) + offset for r in found]
        label = f"{dtype}, {measurements.LAYOUTS[layout]}"
        axes.plot([float(r["ratio"]) for r in found], places, "o", alpha=0.75, label=label)
    axes.set_yticks(range(len(operators)), [f"{o}, {p}" for o, p in operators])
    axes.invert_yaxis()
    axes.set_xlabel("PyTorch's time / atrousx's, a point for each size")
    axes.legend(loc="lower right")
    level_line(axes)
    return figure


def networks(machine: str) -> Figure:
    rows = [
        r
        for r in measurements.measured(machine, "deeplab")
        if (r["dtype"], r["memory_format"], r["batch"]) == ("float32", "contiguous", "1")
    ]
    rows.sort(key=lambda r: r["model"], reverse=True)
    figure, axes = plt.subplots(figsize=(8.2, 0.9 + 0.33 * len(rows)), layout="tight")
    places = np.arange(len(rows))
    for side, label, offset in (("optimized", "optimized", 0.2), ("torch", "PyTorch", -0.2)):
        speeds = [float(r[f"{side}_images_per_s"]) for r in rows]
        axes.barh(places + offset, speeds, 0.38, label=label)
    axes.set_yticks(places, [r["model"] for r in rows])
    axes.set_xlabel("images per second, float32, one image at a time")
    axes.grid(axis="x")
    axes.legend(loc="lower right")
    return figure


# Explanations.


def valid_at_each_pixel(extent: int, rate: int) -> np.ndarray:
    """How many of the nine weights of a 3x3 filter lie on the map, at each pixel."""
    along = np.arange(extent)
    counts = 1 + (along >= rate) + (along + rate < extent)
    return np.outer(counts, counts)


def live_taps(extent: int = 33, rate: int = 18) -> Figure:
    """How many of nine taps are live at every pixel, and the taps of three of them."""
    figure, panels = plt.subplots(1, 2, figsize=(8.2, 3.7), layout="tight")
    colours = matplotlib.rcParams["axes.prop_cycle"].by_key()["color"]
    picture = panels[0].imshow(valid_at_each_pixel(extent, rate), cmap=ListedColormap(colours[:3]))
    bar = figure.colorbar(picture, ax=panels[0], fraction=0.046, ticks=[4 / 6 + 0.5, 2.5, 3.5])
    bar.set_ticks([1.5, 2.5, 3.5], labels=["1 tap", "2 taps", "4 taps"])
    panels[0].set_title(f"live taps, {extent}x{extent} map, rate {rate}")
    axes = panels[1]
    axes.add_patch(plt.Rectangle((-0.5, -0.5), extent, extent, fill=False, edgecolor=ink()))
    for (x, y), marker, colour in zip(((6, 6), (16, 27), (16, 16)), "osD", colours, strict=False):
        taps = [(x + i * rate, y + j * rate) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        inside = [p for p in taps if all(0 <= c < extent for c in p)]
        outside = [p for p in taps if p not in inside]
        axes.plot(*zip(*inside, strict=True), marker, color=colour)
        axes.plot(*zip(*outside, strict=True), marker, color=colour, fillstyle="none", alpha=0.6)
    axes.set(aspect="equal", title="taps of three pixels: filled ones are live")
    axes.invert_yaxis()
    return figure


def phases(extent: int = 12, rate: int = 3) -> Figure:
    """The pixels of a map by phase, and one phase as a map of its own."""
    row, column = np.indices((extent, extent))
    figure, panels = plt.subplots(1, 2, figsize=(8.2, 3.6), layout="tight")
    phase = (row % rate) * rate + column % rate
    panels[0].imshow(phase, cmap="Set3", alpha=0.85)
    panels[0].plot(*np.argwhere(phase == 4)[:, ::-1].T, "ko", markersize=4)
    panels[0].set_title(f"the {rate * rate} phases of a map at rate {rate}")
    small = extent // rate
    panels[1].imshow(np.full((small, small), 4), cmap="Set3", alpha=0.85, vmin=0, vmax=8)
    panels[1].plot(*np.indices((small, small)).reshape(2, -1), "ko", markersize=8)
    panels[1].set_title("one phase: the filter is an ordinary 3x3 one")
    for axes in panels:
        axes.set_xticks([])
        axes.set_yticks([])
    return figure


def lattice() -> Figure:
    """Points of two features on the lattice: a simplex is a triangle, its corners share a point."""
    figure, axes = plt.subplots(figsize=(8.2, 3.4), layout="tight")
    side, height = 1.0, np.sqrt(3) / 2
    steps = np.arange(-8, 9)
    vertices = np.array([(side * (i + j / 2), height * j) for i in steps for j in steps])
    inside = (np.abs(vertices[:, 0]) < 3.6) & (np.abs(vertices[:, 1]) < 1.8)
    vertices = vertices[inside]
    for a in vertices:
        for b in vertices:
            if 0.9 < np.linalg.norm(a - b) < 1.1 and tuple(a) < tuple(b):
                axes.plot(*zip(a, b, strict=True), color=ink(), alpha=0.3, linewidth=0.8)
    colours = matplotlib.rcParams["axes.prop_cycle"].by_key()["color"]
    random = np.random.default_rng(3)
    points = random.normal((0.3, 0.0), (1.1, 0.55), (25, 2))
    axes.plot(*points.T, ".", color=colours[0], label="points (pixels, by their features)")
    corners = np.array([(0, 0), (1, 0), (0.5, height)])
    weights = np.array([0.5, 0.3, 0.2])
    point = weights @ corners
    axes.plot(*point, "D", color=colours[1], label="one point")
    for corner, weight in zip(corners, weights, strict=True):
        axes.plot(*zip(point, corner, strict=True), color=colours[1], linewidth=1)
        axes.plot(*corner, "o", color=colours[2], markersize=5 + 16 * weight)
        axes.annotate(
            f"{weight:.1f}", corner, (-5, 10 if corner[1] else -20), textcoords="offset points"
        )
    axes.plot([], [], "o", color=colours[2], label="vertices of its simplex, with weights")
    axes.set(aspect="equal", xlim=(-3.6, 3.6), ylim=(-1.9, 1.9))
    axes.axis("off")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0), ncols=3)
    return figure


def scenes(numbers: Sequence[int] = (0, 6, 1), side: int = 241) -> Figure:
    """Generated scenes, one at night, and below each its labels."""
    figure, panels = plt.subplots(2, len(numbers), figsize=(8.2, 6.2), layout="constrained")
    colours = voc_palette() / 255
    for number, (above, below) in zip(numbers, panels.T, strict=True):
        image, labels = draw_scene((side, side), np.random.default_rng((0, 0, number)))
        above.imshow(image, interpolation="none")
        below.imshow(colours[labels], interpolation="none")
        for axes in (above, below):
            axes.axis("off")
    named = zip(
        (*SCENE_CLASSES, "border, 255"), (*colours[: len(SCENE_CLASSES)], colours[255]), strict=True
    )
    patches = [Patch(color=colour, label=name) for name, colour in named]
    figure.legend(handles=patches, loc="outside lower center", ncols=4)
    return figure


def valid_weights(extent: int = 65) -> Figure:
    """How many of nine weights lie on the map, as a share of its pixels, by the rate."""
    rates = np.arange(1, extent + 16)
    valid = np.stack([valid_at_each_pixel(extent, int(rate)) for rate in rates])
    figure, axes = plt.subplots(figsize=(8.2, 3.2), layout="tight")
    for number, line in zip((9, 4, 1), ("-", "--", ":"), strict=True):
        share = (valid == number).mean(axis=(1, 2))
        axes.plot(rates, share, line, label=f"{number} valid weight" + "s" * (number > 1))
    others = np.isin(valid, (9, 4, 1), invert=True).mean(axis=(1, 2))
    axes.plot(rates, others, "-.", label="2, 3 or 6 valid weights")
    axes.set(xlabel=f"atrous rate, map of {extent}x{extent}", ylabel="share of the pixels")
    axes.grid()
    axes.legend(loc="center right")
    return figure


def trimap() -> Figure:
    """Mean IoU in bands of several widths along the borders, mean and standard error."""
    figure, axes = plt.subplots(figsize=(8.2, 3.4), layout="tight")
    labels = {"v1_large_fov": "LargeFOV", "v1_large_fov_msc": "multi-scale features"}
    for (variant, view), found in measurements.groups(
        reproduction_tables.rows("trimap"), "variant", "view"
    ).items():
        widths = [int(row["trimap_width"]) for row in found]
        means = [float(row["mean_iou"]) for row in found]
        errors = [float(row["standard_error"] or 0) for row in found]
        label = labels[variant] + (" and CRF" if view.endswith("_crf") else "")
        axes.errorbar(widths, means, errors, marker="o", capsize=2, label=label)
    axes.set(xlabel="width of the band, pixels", ylabel="mean IoU, %")
    axes.grid()
    axes.legend(loc="lower right")
    return figure


EXPLANATIONS: dict[str, Draw] = {
    "live-taps": live_taps,
    "phases": phases,
    "lattice": lattice,
    "scenes": scenes,
    "valid-weights": valid_weights,
}


def drawings() -> dict[str, Draw]:
    found = dict(EXPLANATIONS)
    if reproduction_tables.rows("trimap"):
        found["trimap"] = trimap
    for machine in measurements.machines():
        kinds = {name: bool(measurements.measured(machine, name)) for name in measurements.CASES}
        sweeps = any(
            r["name"].startswith("sweep") for r in measurements.measured(machine, "atrous_conv2d")
        )
        wanted = (
            ("convolution", kinds["atrous_conv2d"], convolution),
            ("rates", sweeps, rates),
            ("upsampling", kinds["upsample"], upsampling),
            ("networks", kinds["deeplab"], networks),
        )
        for name, is_there, draw in wanted:
            if is_there:
                found[f"{machine}-{name}"] = partial(draw, machine)
    return found


def main() -> None:
    GENERATED.mkdir(exist_ok=True)
    for copied in COPIED:
        shutil.copy(measurements.ROOT / copied, GENERATED)
    for name, draw in drawings().items():
        for theme in THEMES:
            with matplotlib.rc_context(style(theme)):
                figure = draw()
                figure.savefig(GENERATED / f"{name}-{theme}.svg", metadata={"Date": None})
                plt.close(figure)


if __name__ == "__main__":
    main()
