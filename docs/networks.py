"""Writes the section on whole networks of a machine's performance page."""

from __future__ import annotations

from measurements import LAYOUTS, Row, groups, measured, plot, ratio, table, threads

# What builds each network of the CSV files; v2 is timed at one scale, unless it says three.
BUILDERS = {
    "v1_7x7_r4": 'deeplab_v1(fc6="7x7_r4")',
    "v1_4x4_r4": 'deeplab_v1(fc6="4x4_r4")',
    "v1_4x4_r8": 'deeplab_v1(fc6="4x4_r8")',
    "v1_large_fov": "deeplab_v1()",
    "v1_multi_scale_features": "deeplab_v1(multi_scale_features=True)",
    "v2_resnet101_aspp_l": "deeplab_v2(multi_scale=False)",
    "v2_resnet101_aspp_s": 'deeplab_v2(head="aspp_s", multi_scale=False)',
    "v2_resnet101_large_fov": 'deeplab_v2(head="large_fov", multi_scale=False)',
    "v2_vgg16_aspp_l": 'deeplab_v2(backbone="vgg16", multi_scale=False)',
    "v2_resnet101_three_scales": "deeplab_v2()",
    "v3_resnet50_os16": "deeplab_v3()",
    "v3_resnet50_os8": "deeplab_v3(output_stride=8)",
    "v3_resnet101_os16": 'deeplab_v3(backbone="resnet101")',
    "v3_resnet101_os8": 'deeplab_v3(backbone="resnet101", output_stride=8)',
    "v3_resnet50_cascade": 'deeplab_v3(head="cascade")',
    "v3_resnet50_torchvision": 'deeplab_v3(layout="torchvision")',
    "v3_resnet101_torchvision": 'deeplab_v3(backbone="resnet101", layout="torchvision")',
    "v3plus_resnet50": "deeplab_v3plus()",
    "v3plus_resnet50_smp": 'deeplab_v3plus(layout="smp")',
    "v3plus_resnet101": 'deeplab_v3plus(backbone="resnet101")',
    "v3plus_xception65": 'deeplab_v3plus(backbone="xception65")',
    "v3plus_mobilenet_v2": 'deeplab_v3plus(backbone="mobilenet_v2")',
}
RUN = ("dtype", "memory_format", "batch", "threads")
SIDES = {
    "atrousx": "as built",
    "optimized": "optimized",
    "torch": "PyTorch's layers",
    "torchvision": "torchvision's own",
}


def section(machine: str) -> str:
    rows = sorted(measured(machine, "deeplab"), key=lambda row: list(BUILDERS).index(row["model"]))
    if not rows:
        return ""
    parts = [
        "## Whole networks\n",
        "Images per second, one column a form of the network: as `atrousx.models` builds it, "
        "rewritten by `atrousx.optimize`, and on PyTorch's own layers. All share one set of "
        "weights. The ratios divide the speed of the optimized network by PyTorch's.\n",
        plot(machine, "networks", "Images per second of whole networks"),
    ]
    for (dtype, layout, batch, count), found in groups(rows, *RUN).items():
        parts.append(f"### Networks, {dtype}, {LAYOUTS[layout]}, batch {batch}, {threads(count)}\n")
        parts.append(_speed_table(found))
    return "\n".join([*parts, "### The networks\n", _networks_table(rows)])


def _speed_table(rows: list[Row]) -> str:
    sides = {side: name for side, name in SIDES.items() if any(_speed(row, side) for row in rows)}
    header = ["network", *sides.values(), "ratio to PyTorch's layers"]
    if "torchvision" in sides:
        header.append("ratio to torchvision's own")
    lines = []
    for row in rows:
        line = [f"`{row['model']}`", *(_speed(row, side) for side in sides), ratio(gain(row))]
        if "torchvision" in sides:
            line.append(ratio(gain(row, "torchvision")) if _speed(row, "torchvision") else "")
        lines.append([*line, row["date"]])
    return table([*header, "measured"], lines)


def _speed(row: Row, side: str) -> str:
    return _decimals(row[f"{side}_images_per_s"])


def _decimals(value: str) -> str:
    return f"{float(value):.2f}" if value else ""


def gain(row: Row, over: str = "torch") -> float:
    """How much faster the optimized network is than another form of it."""
    return float(row["optimized_images_per_s"]) / float(row[f"{over}_images_per_s"])


def _networks_table(rows: list[Row]) -> str:
    text = (
        "Parameters are those for 21 classes. GFLOP are the operations of all convolutions for one "
        'image of the crop; "on data" leaves out those on padding. The last column is the speed '
        "in images per second that the first paper gives for its GPU, of 2014.\n\n"
    )
    header = ["network", "built by", "crop", "parameters", "GFLOP", "on data", "paper"]
    lines = []
    for (model,), found in groups(rows, "model").items():
        r = found[0]
        cells = [f"{int(r['parameters']):,}", _decimals(r["gflop"]), _decimals(r["live_gflop"])]
        crop = f"{r['extent']}x{r['extent']}"
        cells.append(_decimals(r["paper_images_per_s"]))
        lines.append([f"`{model}`", f"`{BUILDERS[model]}`", crop, *cells])
    return text + table(header, lines, 2)
