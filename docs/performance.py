"""Writes the performance pages from the CSV files alone.

    python docs/performance.py    # into docs/performance/

Every folder under benchmarks/results/ is one machine and becomes one page. Where the files hold
several measurements of one case, the newest counts.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from statistics import median

import deployment
import limits
import networks
import training_speed
from measurements import (
    CASES,
    LAYOUTS,
    Row,
    groups,
    is_slower,
    machines,
    measured,
    names,
    plot,
    ratio,
    table,
    threads,
)

PAGES = Path(__file__).resolve().parent / "performance"
PASSES = {
    "forward": "forward",
    "inference": "optimized",
    "grad_input": "grad-input",
    "grad_weight": "grad-weight",
}


# Convolution.


def convolution(machine: str) -> str:
    rows = [row for row in measured(machine, "atrous_conv2d") if row["pass"] in PASSES]
    layers = [row for row in rows if not row["name"].startswith("sweep")]
    if not layers:
        return ""
    parts = [
        "## Convolution\n",
        "The tables give PyTorch's time divided by atrousx's, with atrousx's own kernels "
        '(`backend="native"`). "Optimized" is the forward pass of the layer that '
        "`atrousx.optimize` makes, whose weights are packed once.\n",
        plot(machine, "convolution", "Ratio to PyTorch of every layer and pass"),
    ]
    for (dtype, batch, count, layout), found in groups(layers, *RUN).items():
        heading = f"### {dtype}, batch {batch}, {threads(count)}, {LAYOUTS[layout]}\n"
        parts += [heading, _convolution_table(found)]
    parts += ["### The layers\n", _layers_table(layers)]
    if len(layers) < len(rows):
        parts += [
            "### Speed against the dilation rate\n",
            "One layer of DeepLab v3's pyramid at many rates, forward. The dashed line is one over "
            "the live fraction: the most that skipping padding can gain over a convolution "
            "that multiplies it at the same speed.\n",
            plot(machine, "rates", "Ratio to PyTorch against the dilation rate"),
        ]
    return "\n".join(parts)


RUN = ("dtype", "batch", "threads", "memory_format")


def _convolution_table(rows: list[Row]) -> str:
    cells = {(r["name"], r["pass"]): r for r in rows}
    passes = [p for p in PASSES if any(key[1] == p for key in cells)]
    header = ["layer", *(PASSES[p] for p in passes)]

    def cell(name: str, of_pass: str) -> str:
        row = cells.get((name, of_pass))
        if row is None:
            return ""
        if row["wrong"]:
            return "PyTorch wrong" if row["wrong"] == "torch" else "atrousx wrong"
        return ratio(row["ratio"])

    return table(header, ([f"`{n}`", *(cell(n, p) for p in passes)] for n in names(rows, "name")))


def _layers_table(rows: list[Row]) -> str:
    header = ["layer", "channels", "filters", "kernel", "rate", "map", "groups", "live"]
    lines = []
    for (name,), found in groups(rows, "name").items():
        r = found[0]
        kernel, extent = f"{r['kernel']}x{r['kernel']}", f"{r['extent']}x{r['extent']}"
        sizes = [r["in_channels"], r["out_channels"], kernel, r["dilation"], extent, r["groups"]]
        lines.append([f"`{name}`", *sizes, f"{100 * float(r['live_fraction']):.0f} %"])
    return table(header, lines)


# Upsampling.


def upsampling(machine: str) -> str:
    rows = measured(machine, "upsample")
    if not rows:
        return ""
    parts = [
        "## Upsampling\n",
        'PyTorch\'s side is `interpolate` for "bilinear", and for the others its two steps: '
        "`interpolate`, then `argmax`, `cross_entropy` or `softmax`.\n",
        plot(machine, "upsampling", "Ratio to PyTorch of every operator and size"),
    ]
    for (dtype, layout, count), found in groups(rows, "dtype", "memory_format", "threads").items():
        cells = {(_maps(r), r["operator"], r["pass"]): r["ratio"] for r in found}
        columns = list(dict.fromkeys((r["operator"], r["pass"]) for r in found))
        lines = [
            [maps, *(_ratio_or_blank(cells.get((maps, *c))) for c in columns)]
            for maps in dict.fromkeys(_maps(r) for r in found)
        ]
        # A hyphen lets a narrow column break.
        header = ["maps", *(f"{name.replace('_', '-')}, {run}" for name, run in columns)]
        parts.append(f"### {dtype}, {LAYOUTS[layout]}, {threads(count)}\n")
        parts.append(table(header, lines))
    return "\n".join(parts)


def _maps(row: Row) -> str:
    sizes = f"{row['n']}x{row['c']}x{row['h']}x{row['w']} to {row['oh']}x{row['ow']}"
    return f"`{row['shape']}` {sizes}"


def _ratio_or_blank(value: str | None) -> str:
    return ratio(value) if value else ""


# The dense CRF.


def dense_crf(machine: str) -> str:
    rows = measured(machine, "dense_crf")
    if not rows:
        return ""
    parts = [
        "## Dense CRF\n",
        "Ten iterations with sigmas 67/3 and 3, on scikit-image's photograph of a cup of coffee. "
        '"All-in" is a whole call: both lattices and all iterations. The ratio is the time of the '
        "other implementation, all-in, divided by that of `DenseCRF`.\n",
    ]
    for (size, count), found in groups(rows, "size", "threads").items():
        own = next(r for r in found if r["stage"] == "all-in")
        lines = [
            [
                r["stage"].replace("all-in, compat", "all-in, by the compat layer"),
                f"{float(r['ms']):.0f}",
                f"{float(r['growth_mib']):.0f}" if r["growth_mib"] else "",
                ratio(float(r["ms"]) / float(own["ms"])) if _is_other(r["stage"]) else "",
            ]
            for r in found
        ]
        parts.append(f"### {_crf_size(size)}, {threads(count)}\n")
        parts.append(table(["stage", "ms", "memory growth, MiB", "ratio"], lines))
    return "\n".join(parts)


def _crf_size(size: str) -> str:
    width, height, labels = size.split("x")
    return f"{width}x{height} pixels, {labels} labels"


def _is_other(stage: str) -> bool:
    return stage.startswith(("pydensecrf", "MONAI"))


# Where PyTorch is faster, and the page.


def slower_cases(machine: str) -> list[tuple[str, float, str]]:
    """Every measured line in which PyTorch is faster: what, the ratio, the ratio of "auto"."""
    found = []
    for r in measured(machine, "atrous_conv2d"):
        if is_slower(r["ratio"]) and not r["wrong"]:
            what = f"`{r['name']}`, {PASSES.get(r['pass'], r['pass'])}, {r['dtype']}"
            what += f", {LAYOUTS[r['memory_format']]}, batch {r['batch']}, {threads(r['threads'])}"
            auto = ratio(r["auto_ratio"]) if r["auto_ratio"] else ""
            found.append((what, float(r["ratio"]), auto))
    for r in measured(machine, "upsample"):
        if is_slower(r["ratio"]):
            what = f"upsampling, {r['operator']} {r['pass']}, `{r['shape']}`, {r['dtype']}"
            found.append((f"{what}, {LAYOUTS[r['memory_format']]}", float(r["ratio"]), ""))
    for r in measured(machine, "deeplab"):
        if is_slower(networks.gain(r)):
            what = f"`{r['model']}`, optimized, {r['dtype']}, {LAYOUTS[r['memory_format']]}"
            found.append((what, networks.gain(r), ""))
    for what, r in training_speed.steps(machine):
        if is_slower(r["ratio"]):
            found.append((what, float(r["ratio"]), ""))
    return sorted(found, key=lambda case: case[1])


def summary(machine: str) -> str:
    """The spread of the ratios, by kind of operation and dtype."""
    found: dict[tuple[str, str], list[float]] = {}
    for r in measured(machine, "atrous_conv2d"):
        if not r["wrong"]:
            found.setdefault((_kind_of_convolution(r), r["dtype"]), []).append(float(r["ratio"]))
    for r in measured(machine, "upsample"):
        name = "upsampling" if r["operator"] == "bilinear" else f"upsampling with {r['operator']}"
        found.setdefault((name, r["dtype"]), []).append(float(r["ratio"]))
    for r in measured(machine, "deeplab"):
        found.setdefault(("whole networks, optimized", r["dtype"]), []).append(networks.gain(r))
    for _, r in training_speed.steps(machine):
        found.setdefault(("training steps", r["dtype"]), []).append(float(r["ratio"]))
    if not found:
        return ""
    lines = [
        [*case, str(len(ratios)), ratio(min(ratios)), ratio(median(ratios)), ratio(max(ratios))]
        for case, ratios in sorted(found.items())
    ]
    text = "## Summary\n\nPyTorch's time divided by atrousx's. A bold ratio is below 1: there "
    text += "PyTorch is faster.\n\n"
    return text + table(["what", "dtype", "lines", "least", "median", "greatest"], lines, 2)


def _kind_of_convolution(row: Row) -> str:
    if row["groups"] != "1":
        return "depthwise convolution"
    live = float(row["live_fraction"])
    share = (
        "90 % live or more"
        if live >= 0.9
        else "60 to 90 % live"
        if live >= 0.6
        else "under 60 % live"
    )
    return f"convolution, {share}"


def where_torch_is_faster(machine: str) -> str:
    rows = [row for kind in KINDS for row in measured(machine, kind)]
    rows += [row for _, row in training_speed.steps(machine)]
    if not rows:
        return ""
    wrong = Counter(row["wrong"] for row in rows if row.get("wrong"))
    slower = slower_cases(machine)
    text = f"## Where PyTorch is faster\n\nPyTorch is faster in {len(slower)} of "
    text += f"{len(rows) - wrong.total()} measured lines."
    for side, name in (("torch", "PyTorch"), ("atrousx", "atrousx")):
        count = sum(number for sides, number in wrong.items() if side in sides)
        if count:
            left_out = "line is left out" if count == 1 else "lines are left out"
            text += f" {count} more {left_out}: there {name}'s result was wrong."
    if not slower:
        return text + "\n"
    text += ' The last column is the ratio with the default, `backend="auto"`.\n\n'
    lines = [[what, ratio(value), auto] for what, value, auto in slower]
    return text + table(["case", "native", "auto"], lines)


# What is always measured beside PyTorch's; dense_crf is not, and a training step only beside
# torchvision's, where that is installed.
KINDS = ("atrous_conv2d", "upsample", "deeplab")


def heading(machine: str) -> str:
    row = next(row for kind in CASES for row in measured(machine, kind))
    return f"# {machine}\n\n{row['machine']}, {row['device']}.\n"


def commits(machine: str) -> str:
    """What was measured, when, and with what."""
    rows = [row for kind in CASES for row in measured(machine, kind)]
    lines = Counter((r["date"], r["commit"], r["torch"], r["library"]) for r in rows)
    text = (
        "## The measurements\n\nEvery table uses the newest measurement of a case. It is of one of "
    )
    text += "these commits.\n\n"
    measured_at = [[*key, str(count)] for key, count in sorted(lines.items(), reverse=True)]
    return text + table(["date", "commit", "PyTorch", "library", "lines"], measured_at, 4)


def page(machine: str) -> str:
    sections = [
        heading(machine),
        summary(machine),
        where_torch_is_faster(machine),
        convolution(machine),
        upsampling(machine),
        dense_crf(machine),
        networks.section(machine),
        deployment.section(machine),
        training_speed.section(machine),
        commits(machine),
    ]
    return "\n".join(section for section in sections if section)


# All pages.


def write_pages() -> None:
    (PAGES / "machines").mkdir(parents=True, exist_ok=True)
    for machine in machines():
        (PAGES / "machines" / f"{machine}.md").write_text(page(machine))
    (PAGES / "limits.md").write_text(limits.page())


if __name__ == "__main__":
    write_pages()
