"""Writes the tables of docs/reproduction.md from the CSV files of benchmarks/reproduce.py."""

from __future__ import annotations

import csv
from pathlib import Path

import measurements
from measurements import Row, groups, table

FOLDER = Path(__file__).resolve().parent / "_generated"
# Name, field of view in pixels, and the paper's mean IoU on PASCAL VOC before and after the CRF.
V1 = {
    "v1_7x7_r4": ("7x7, rate 4", 224, "64.38", "67.64"),
    "v1_4x4_r4": ("4x4, rate 4", 128, "59.80", "63.74"),
    "v1_4x4_r8": ("4x4, rate 8", 224, "63.41", "67.14"),
    "v1_large_fov": ("3x3, rate 12 (LargeFOV)", 224, "62.25", "67.64"),
}
V2 = {
    "v2_large_fov_step": "LargeFOV, step",
    "v2_large_fov_poly": "LargeFOV, poly",
    "v2_aspp_s": "ASPP-S, poly",
    "v2_aspp_l": "ASPP-L, poly",
    "v2_aspp_l_msc": "ASPP-L, poly, three scales",
}
# The paper has ResNet-101 here.
V3_HEADS = {
    ("v3_aspp_mg124", "os16"): ("multi-grid (1, 2, 4), image pooling", "77.21"),
    ("v3_aspp_mg124", "os8"): ("the same network at output stride 8", "78.51"),
    ("v3_aspp_mg124", "os8_scales"): ("and several scales", "79.45"),
    ("v3_aspp_mg124", "os8_scales_flip"): ("and mirror images", "79.77"),
    ("v3_aspp_mg121", "os16"): ("multi-grid (1, 2, 1), image pooling", ""),
    ("v3_aspp_mg111", "os16"): ("multi-grid (1, 1, 1), image pooling", ""),
    ("v3_aspp_mg124_no_image_pooling", "os16"): ("multi-grid (1, 2, 4), no image pooling", ""),
}
# ResNet-50 in both.
V3_BLOCK7 = {
    ("v3_block7_os8", "os8"): ("8", "75.18"),
    ("v3_block7_os16", "os16"): ("16", "73.88"),
    ("v3_block7_os32", "os32"): ("32", "70.06"),
    ("v3_block7_os64", "os64"): ("64", "59.99"),
}


def rows(name: str) -> list[Row]:
    """Returns the lines of a table's newest measurement, of the machine that made it last."""
    found: list[Row] = []
    for path in sorted(measurements.RESULTS.glob(f"*/reproduction_{name}.csv")):
        with path.open(newline="") as file:
            found += csv.DictReader(file)
    newest = max((row["date"] for row in found), default="")
    return [row for row in found if row["date"] == newest]


def iou(row: Row) -> str:
    """Returns mean and standard error."""
    return (
        f"{row['mean_iou']} ± {row['standard_error']}" if row["standard_error"] else row["mean_iou"]
    )


def by_view(found: list[Row]) -> dict[tuple[str, ...], Row]:
    return {key: row for key, [row] in groups(found, "variant", "view").items()}


def v1() -> str:
    found = by_view(rows("v1"))
    header = ["fc6", "parameters", "field of view", "images/s", "mean IoU", "with CRF"]
    lines = []
    for variant, (label, view, paper, paper_crf) in V1.items():
        single, refined = found[variant, "single"], found[variant, "single_crf"]
        numbers = [f"{int(single['parameters']):,}", str(view), single["images_per_s"]]
        lines.append([label, *numbers, iou(single), iou(refined), paper, paper_crf])
    return table([*header, "paper", "paper, with CRF"], lines)


def v2() -> str:
    found = by_view(rows("v2"))
    lines = []
    for variant, label in V2.items():
        single, refined = found[variant, "single"], found[variant, "single_crf"]
        numbers = [f"{int(single['parameters']):,}", single["images_per_s"]]
        lines.append([label, *numbers, iou(single), iou(refined)])
    return table(["network", "parameters", "images/s", "mean IoU", "with CRF"], lines)


def v3() -> str:
    found = by_view(rows("v3"))
    heads = [[label, iou(found[key]), paper] for key, (label, paper) in V3_HEADS.items()]
    cascade = [
        [label, found[key]["images_per_s"], iou(found[key]), paper]
        for key, (label, paper) in V3_BLOCK7.items()
    ]
    header = ["output stride of block 7", "images/s", "mean IoU", "paper"]
    return "\n".join([table(["ASPP", "mean IoU", "paper"], heads), table(header, cascade)])


def trimap() -> str:
    return (
        "```{picture} trimap\nMean IoU in bands along the borders, before and after the CRF\n```\n"
    )


# The heading and the first sentences of each table's section.
SECTIONS = {
    "v1": (
        v1,
        "## DeepLab v1: the field of view\n\nTable 2 of the paper: how the first fully connected "
        'layer becomes a convolution. "Images/s" is the speed of training.\n',
    ),
    "v2": (v2, "## DeepLab v2: learning rate, ASPP, three scales\n\nWith VGG-16.\n"),
    "v3": (
        v3,
        "## DeepLab v3: ASPP, multi-grid and output stride\n\nThe paper has ResNet-101 in the "
        "first table and ResNet-50 in the second. Here both have ResNet-50.\n",
    ),
    "trimap": (
        trimap,
        "## Near the borders\n\nThe mean IoU of the pixels within some distance of a border.\n",
    ),
}


def write_tables() -> None:
    """Writes a file for each table; that of a table which was not measured is empty."""
    FOLDER.mkdir(exist_ok=True)
    for name, (make, text) in SECTIONS.items():
        section = f"{text}\n{make()}" if rows(name) else ""
        (FOLDER / f"reproduction-{name}.md").write_text(section)
