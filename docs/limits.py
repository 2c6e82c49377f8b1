"""Writes the page of the limits that the rule of "auto" looks up."""

from __future__ import annotations

import json
from typing import Any

from measurements import LAYOUTS, ROOT, table, threads

FOLDER = ROOT / "atrousx" / "backend" / "limits"
COLUMNS = [f"{dtype} {layout}" for dtype in ("float32", "bfloat16") for layout in LAYOUTS]
USES = {
    "trains": "training",
    "infers": "forward",
    "packed": "optimized",
    "packed, ReLU": "optimized, ReLU",
}


def page() -> str:
    """What the rule of "auto" looks up, by instruction set."""
    parts = [
        '# The limits of "auto"\n',
        'On a CPU, `backend="auto"` compares the [live fraction](../glossary.md) of a '
        "convolution with a measured limit. From the limit on, PyTorch computes. The limit depends "
        "on the kind of convolution, on dtype and layout, and on the use: training, a forward pass "
        "without gradients, and a layer that `optimize` has packed, without or with a ReLU. "
        "Layers that [Winograd's method](../explanation/winograd.md) computes are not looked up: "
        "atrousx computes them.\n",
        "`benchmarks/tune.py` measures the limits. They are kept in `atrousx/backend/limits/`.\n",
    ]
    for file in sorted(FOLDER.glob("*.json")):
        parts.append(_limits_of(file.stem, json.loads(file.read_text())))
    return "\n".join(parts)


def _limits_of(instruction_set: str, limits: dict[str, Any]) -> str:
    how, few = limits["measured"], limits["bounds"]
    kinds = limits["torch_from"]
    parts = [
        f"## {instruction_set}\n",
        f"Measured on {how['cpu']}, {threads(str(how['threads']))}, PyTorch {how['torch']}, "
        f"{how['date']}. Few channels are under {few['few_channels']}, many channels "
        f"{few['many_channels']} or more (in a group {few['many_channels_of_a_group']}), few "
        f"outputs under {few['few_outputs']}, many taps {few['many_taps']} or more.\n",
    ]
    for column in COLUMNS:
        dtype, layout = column.split()
        lines = [
            [kind, *(_limit(columns, column, use) for use in USES)]
            for kind, columns in kinds.items()
        ]
        header = ["PyTorch computes from", *USES.values()]
        parts += [f"### {instruction_set}, {dtype}, {LAYOUTS[layout]}\n", table(header, lines)]
    return "\n".join(parts)


def _limit(found: Any, column: str, use: str) -> str:
    """``found``: a table by column and use, or a number that holds for all of them."""
    for names in ((column,), (use, "packed")):
        if isinstance(found, dict):
            found = next(found[name] for name in names if name in found)
    if found is None:
        return "never"
    return f"{100 * found:.0f} % live" if found else "always"
