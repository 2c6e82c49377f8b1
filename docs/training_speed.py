"""Writes the section on training of a machine's performance page."""

from __future__ import annotations

from measurements import LAYOUTS, Row, groups, measured, ratio, table, threads

# "Recomputed" is atrousx after recompute_activations.
SIDES = ("atrousx", "recomputed", "torchvision")
RUN = ("dtype", "batch", "extent", "width", "threads")


def section(machine: str) -> str:
    parts = [_steps(machine), _loading(machine), _memory_of_loss(machine)]
    if not any(parts):
        return ""
    text = (
        "## Training\n\nA step of DeepLab v3 on ResNet-50, in torchvision's layout and with the "
        "auxiliary classifier, is forward, loss, backward and the optimizer's step. bfloat16 is "
        "autocast's.\n"
    )
    return "\n".join([text, *(part for part in parts if part)])


def _steps(machine: str) -> str:
    parts = [
        "Seconds of a step, and the MiB that it adds to the weights and the momentum. A ratio is "
        "the time of torchvision's reference step divided by atrousx's: in the same layout, and "
        "in torchvision's faster layout. \"Recomputed\" is atrousx's step after "
        "`recompute_activations`.\n"
    ]
    header = ["layout", *(f"{name}, s" for name in SIDES)]
    header += ["ratio", "ratio to the faster layout"]
    header += [*(f"{name}, MiB" for name in SIDES), "measured"]
    rows = measured(machine, "training_step")
    for case, found in groups(rows, *RUN).items():
        lines = [
            [
                LAYOUTS[row["memory_format"]],
                *(_decimals(row[f"{side}_s"], 3) for side in SIDES),
                *(_ratio(row[name]) for name in ("ratio", "ratio_to_best_layout")),
                *(_decimals(row[f"{side}_peak_mib"]) for side in SIDES),
                row["date"],
            ]
            for row in found
        ]
        parts += [f"### Training step, {_run(case)}\n", table(header, lines)]
    return "\n".join(parts) if rows else ""


def _loading(machine: str) -> str:
    rows = measured(machine, "training_loading")
    text = (
        "### Reading and augmenting images\n\nImages per second that workers of a `DataLoader` "
        "deliver, and that a step in channels_last uses. The workers are timed while no step "
        "runs. On a CPU both share the cores in a real training.\n\n"
    )
    lines = [
        [
            _run(tuple(row[name] for name in RUN)),
            row["workers"],
            _decimals(row["loaded_images_per_s"], 1),
            _decimals(row["trained_images_per_s"], 3),
            f"{float(row['ratio']):.1f}",
        ]
        for row in rows
    ]
    header = ["case", "workers", "delivered", "used", "times faster"]
    return text + table(header, lines) if rows else ""


def _memory_of_loss(machine: str) -> str:
    rows = measured(machine, "memory_of_loss")
    text = (
        "### Memory of the loss\n\nMiB that a step adds to the weights and the momentum. "
        "`model(images, target)` never stores logits at the images' size. "
        "`model.loss(model(images), target)` does.\n\n"
    )
    lines = [
        [
            f"{_run(tuple(row[name] for name in RUN))}, {LAYOUTS[row['memory_format']]}",
            *(_decimals(row[f"{side}_peak_mib"]) for side in ("atrousx", "full_size_logits")),
        ]
        for row in rows
    ]
    header = ["case", "`model(images, target)`", "`model.loss(model(images), target)`"]
    return text + table(header, lines) if rows else ""


def _run(case: tuple[str, ...]) -> str:
    """Names a case; the width only where it is not 1, and the threads only of a CPU."""
    dtype, batch, extent, width, count = case
    named = [dtype, f"batch {batch}", f"crop {extent}x{extent}"]
    if float(width) != 1:
        named.append(f"width {width}")
    return ", ".join([*named, *([threads(count)] if count else [])])


def _ratio(value: str) -> str:
    return ratio(value) if value else ""


def _decimals(value: str, digits: int = 0) -> str:
    return f"{float(value):.{digits}f}" if value else ""


def steps(machine: str) -> list[tuple[str, Row]]:
    """The steps that were measured beside torchvision's, each with a name."""
    rows = [row for row in measured(machine, "training_step") if row["ratio"]]
    return [
        (f"training step, {_run(case)}, {LAYOUTS[row['memory_format']]}", row)
        for case, found in groups(rows, *RUN).items()
        for row in found
    ]
