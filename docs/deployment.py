"""Writes the section on other runtimes of a machine's performance page."""

from __future__ import annotations

from measurements import groups, measured, ratio, table, threads

SIDES = {
    "atrousx": "atrousx",
    "eager_contiguous": "PyTorch, NCHW",
    "eager_channels_last": "PyTorch, channels_last",
    "compile": "torch.compile",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
}
RUN = ("dtype", "batch", "threads")


def section(machine: str) -> str:
    rows = measured(machine, "deployment")
    if not rows:
        return ""
    parts = [
        "## Beside other runtimes\n",
        "Images per second of whole networks in inference, all with the same weights: the result "
        "of `atrousx.optimize`, the public code's own network in PyTorch, and what "
        "`torch.compile`, ONNX Runtime and OpenVINO make of it. The ratio divides the speed of "
        "atrousx by that of the fastest other one; it is bold below 1.\n",
    ]
    for (dtype, batch, count), found in groups(rows, *RUN).items():
        parts.append(f"### Runtimes, {dtype}, batch {batch}, {threads(count)}\n")
        header = ["", *(f"`{row['network']}`, {row['extent']}x{row['extent']}" for row in found)]
        lines = [
            [name, *(row[f"{side}_images_per_s"] for row in found)] for side, name in SIDES.items()
        ]
        lines.append(["ratio to the fastest other", *(ratio(row["ratio"]) for row in found)])
        parts.append(table(header, lines))
    return "\n".join(parts)
