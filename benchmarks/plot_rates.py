"""Draws speed relative to PyTorch against the rate, from bench_atrous.py --sweep --csv FILE.

The dashed line is 1 / live fraction. It is the most that skipping padding can gain over a
convolution that multiplies padding at the same speed. Needs matplotlib.

    python benchmarks/plot_rates.py benchmarks/results/my_machine/atrous_conv2d-sweep.csv rates.png
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

Points = list[tuple[int, float]]


def read_curves(rows: Iterable[Mapping[str, str]]) -> dict[int, dict[str, Points]]:
    """Returns, by map extent, the points (rate, ratio) of each memory format, and the ideal."""
    curves: dict[int, dict[str, Points]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["pass"] != "forward":
            continue
        of_map, rate = curves[int(row["extent"])], int(row["dilation"])
        of_map[row["memory_format"]].append((rate, float(row["ratio"])))
        ideal = (rate, 1 / float(row["live_fraction"]))
        if ideal not in of_map["ideal"]:
            of_map["ideal"].append(ideal)
    return {
        extent: {name: sorted(points) for name, points in of_map.items()}
        for extent, of_map in sorted(curves.items())
    }


def draw(curves: dict[int, dict[str, Points]], title: str, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, len(curves), figsize=(5.2 * len(curves), 3.9), sharey=True, squeeze=False
    )
    for axis, (extent, of_map) in zip(axes[0], curves.items(), strict=True):
        for name, points in of_map.items():
            ideal = name == "ideal"
            axis.plot(
                *zip(*points, strict=True),
                linestyle="--" if ideal else "-",
                marker=None if ideal else "o",
                color="grey" if ideal else None,
                label="1 / live fraction" if ideal else name,
            )
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set(title=f"{extent}x{extent} map", xlabel="dilation rate", ylim=(0, None))
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("PyTorch's time / atrousx's, forward")
    axes[0][0].legend(loc="upper left")
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("csv", type=Path)
    parser.add_argument("png", type=Path)
    args = parser.parse_args(arguments)
    with args.csv.open(newline="") as file:
        rows = list(csv.DictReader(file))
    curves = read_curves(rows)
    if not curves:
        parser.error(f"{args.csv} has no forward pass")
    first = rows[0]
    layer = f"{first['in_channels']} to {first['out_channels']} channels, 3x3, {first['dtype']}"
    where = f"{first['machine']}, {first['threads']} threads, {first['library']}"
    draw(curves, f"{layer}, batch {first['batch']}; {where}", args.png)
    return 0


if __name__ == "__main__":
    sys.exit(main())
