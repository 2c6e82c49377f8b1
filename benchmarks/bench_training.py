"""Times a training step of DeepLab v3 ResNet-50, and torchvision's reference step beside it.

A step is forward, loss, backward and the optimizer's step: SGD with momentum 0.9 and weight decay
1e-4. atrousx's side is `model(images, target)`. torchvision's side is its network with an auxiliary
classifier, and the cross-entropy of logits at the images' size. A third side, "recomputed", is
atrousx's after `recompute_activations`. All have the same weights. Both memory layouts of all sides
run in turns in one process. bfloat16 is autocast's.

    python benchmarks/bench_training.py --batches 2,4 --csv FILE
    python benchmarks/bench_training.py --quick
    python benchmarks/bench_training.py --loading            # do the workers keep up with a step?
    python benchmarks/bench_training.py --memory-of-loss     # what full-size logits would cost

The peak memory is what a step adds to weights, optimizer's state and batch. On a CPU each side is
measured in a process of its own, in the first step of this size.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from loading import loaders
from timing import CsvWriter, describe_machine
from torchvision_models import segmentation
from training_steps import FORMATS, Case, Step, differences, peak_of

from atrousx.doctor.timing import Measured, fair_settings, interleaved

DTYPES = ("float32", "tf32", "bfloat16")
Row = dict[str, Any]
# atrousx as it is, and with activations that are computed again in the backward pass.
OWN = ("atrousx", "recomputed")
USUAL: Row = {"batches": "2,4", "extent": 513, "width": 1.0, "seconds": 60.0, "rounds": 3}
QUICK: Row = {"batches": "2", "extent": 65, "width": 0.1, "seconds": 0.0, "rounds": 1}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    gpu = torch.cuda.is_available()
    parts = parser.add_mutually_exclusive_group()
    parts.add_argument("--loading", action="store_true", help="images per second of the workers")
    parts.add_argument("--memory-of-loss", action="store_true", help="without full-size logits")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if gpu else "cpu")
    parser.add_argument("--dtypes", metavar="NAME,...", default="float32,bfloat16")
    parser.add_argument("--batches", metavar="N,...", help="images of a step; default: 2,4")
    parser.add_argument("--extent", type=int, help="height and width of the crop; default: 513")
    parser.add_argument("--width", type=float, help="factor of all channels; default: 1")
    parser.add_argument("--quick", action="store_true", help="small sizes: whether it runs")
    parser.add_argument("--seconds", type=float, help="for each case; default: 60, quick: 0")
    parser.add_argument("--rounds", type=int, help="at least; default: 3, quick: 1")
    parser.add_argument("--threads", type=int, help="CPU threads; default: PyTorch's own choice")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="append every line to this file")
    args = parser.parse_args(argv)
    for name, value in (QUICK if args.quick else USUAL).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.dtypes, args.batches = args.dtypes.split(","), args.batches.split(",")
    if unknown := [name for name in args.dtypes if name not in DTYPES]:
        parser.error(f"--dtypes knows {', '.join(DTYPES)}, not {', '.join(unknown)}")
    if args.device == "cpu" and "tf32" in args.dtypes:
        parser.error("--dtypes tf32: a precision of GPUs")
    if args.device == "cuda" and not gpu:
        parser.error("--device cuda: PyTorch sees no GPU here")
    if not all(text.isdecimal() and int(text) > 1 for text in args.batches):
        # After the image pooling each image has one value, and batch normalisation needs two.
        parser.error(f"--batches must be whole numbers of at least 2, got {','.join(args.batches)}")
    args.batches = [int(text) for text in args.batches]
    return args


def cases(args: argparse.Namespace) -> Iterator[dict[str, Case]]:
    """Yields the two layouts of each dtype and batch."""
    for dtype in args.dtypes:
        for batch in args.batches:
            sizes = (batch, args.extent, args.width)
            yield {name: Case(args.device, dtype, name, *sizes) for name in FORMATS}


def peak(side: str, case: Case, step: Step | None = None) -> float | str:
    """Returns the peak memory of a step in MiB, or an empty text if the system does not tell.

    On a GPU it is measured in ``step``, whose libraries have already tried their algorithms.
    """
    if case.device == "cpu":
        found = peak_of(side, case)
    else:
        if step is None:
            step = Step(side, case)
            step()
        found = step.peak()
    return "" if math.isnan(found) else round(found, 1)


def described(case: Case) -> Row:
    names = ("dtype", "memory_format", "batch", "extent", "width")
    return {name: getattr(case, name) for name in names}


# Steps of both libraries.


def measure_steps(layouts: dict[str, Case], args: argparse.Namespace) -> list[Row]:
    """Returns one row for each layout. Ratios are torchvision's time divided by atrousx's."""
    sides = [*OWN] if segmentation() is None else [*OWN, "torchvision"]
    steps = {(side, name): Step(side, case) for name, case in layouts.items() for side in sides}
    compared = {}
    for name in layouts if "torchvision" in sides else ():
        loss, gradient = differences(steps["atrousx", name], steps["torchvision", name])
        compared[name] = (f"{loss:.1e}", f"{gradient:.1e}")
    calls = {f"{side} {name}": step for (side, name), step in steps.items()}
    timed = interleaved(calls, torch.device(args.device), args.seconds, args.rounds)
    best = min(timed[f"{sides[-1]} {name}"].median for name in layouts)
    rows = []
    for name, case in layouts.items():
        row = described(case)
        row |= seconds_and_ratios({side: timed[f"{side} {name}"] for side in sides}, best)
        for side in (*OWN, "torchvision"):
            step = steps.get((side, name))
            row[f"{side}_peak_mib"] = "" if step is None else peak(side, case, step)
        row["loss_difference"], row["gradient_difference"] = compared.get(name, ("", ""))
        rows.append(row)
    return rows


def seconds_and_ratios(found: dict[str, Measured], best: float) -> Row:
    """Returns the columns of the times; those of a side that is not installed are empty."""
    row: Row = {"rounds": len(found["atrousx"].samples)}
    for side in (*OWN, "torchvision"):
        timed = found.get(side)
        row[f"{side}_s"] = "" if timed is None else round(timed.median, 5)
        row[f"{side}_fastest_s"] = "" if timed is None else round(timed.fastest, 5)
    own, other = found["atrousx"].median, found.get("torchvision")
    row["ratio"] = "" if other is None else round(other.median / own, 4)
    row["ratio_to_best_layout"] = "" if other is None else round(best / own, 4)
    return row


# Loading.


def measure_loading(layouts: dict[str, Case], args: argparse.Namespace) -> list[Row]:
    """Returns a row for each number of workers, beside the step in channels_last.

    The workers are timed while no step runs. On a CPU both share the cores in a real training.
    """
    case = layouts["channels_last"]
    calls: dict[str, Callable[[], object]] = {"step": Step("atrousx", case)}
    with loaders(case.batch, case.extent, args.quick) as (images, epochs):
        calls |= {str(workers): epoch for workers, epoch in epochs.items()}
        timed = interleaved(calls, torch.device(args.device), args.seconds, args.rounds)
    trained = case.batch / timed["step"].median
    rows = []
    for workers in epochs:
        loaded = images / timed[str(workers)].median
        row = {**described(case), "workers": workers, "rounds": len(timed["step"].samples)}
        row |= {"loaded_images_per_s": round(loaded, 3), "trained_images_per_s": round(trained, 5)}
        rows.append({**row, "ratio": round(loaded / trained, 3)})
    return rows


# Memory of the loss.


def measure_loss(layouts: dict[str, Case], args: argparse.Namespace) -> list[Row]:
    """Returns the peak memory of a step that stores no full-size logits, and of one that does."""
    sides = ("atrousx", "full_size_logits")
    return [
        described(case) | {f"{side}_peak_mib": peak(side, case) for side in sides}
        for case in layouts.values()
    ]


# What is measured, the columns that are printed with their widths, and what they say.


class Part(NamedTuple):
    measure: Callable[[dict[str, Case], argparse.Namespace], list[Row]]
    columns: dict[str, int]
    note: str


SIZES = {"dtype": 8, "memory_format": 13, "batch": 5, "extent": 6}
STEPS = Part(
    measure_steps,
    {
        **SIZES,
        "atrousx_s": 9,
        "torchvision_s": 13,
        "ratio": 7,
        "ratio_to_best_layout": 20,
        "atrousx_peak_mib": 13,
        "torchvision_peak_mib": 20,
        "loss_difference": 15,
        "gradient_difference": 19,
    },
    "Seconds of a step: the median. Ratio: torchvision's time over atrousx's, in the same layout "
    "and in torchvision's faster layout. Peak: what a step adds to weights and momentum.",
)
LOADING = Part(
    measure_loading,
    {
        **SIZES,
        "workers": 7,
        "loaded_images_per_s": 19,
        "trained_images_per_s": 20,
        "ratio": 9,
    },
    "Ratio: how many times faster the workers deliver images than the step uses them.",
)
LOSS = Part(
    measure_loss,
    {**SIZES, "atrousx_peak_mib": 13, "full_size_logits_peak_mib": 25},
    "Peak: what a step adds to weights and momentum, with model(images, target), and with "
    "model.loss(model(images), target).",
)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    before = torch.get_num_threads()
    torch.set_num_threads(args.threads or before)
    machine = describe_machine(torch.device(args.device))
    print(f"{machine['machine']}, torch {machine['torch']}, width {args.width}")
    part = LOADING if args.loading else LOSS if args.memory_of_loss else STEPS
    print(" ".join(f"{name:>{width}}" for name, width in part.columns.items()))
    for layouts in cases(args):
        with fair_settings(layouts["contiguous"].dtype):
            rows = part.measure(layouts, args)
        for row in rows:
            cells = [f"{row[name]:>{width}}" for name, width in part.columns.items()]
            print(" ".join(cells), flush=True)
            if args.csv:
                CsvWriter(args.csv).write({**machine, **row})
    print(f"\n{part.note}")
    torch.set_num_threads(before)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
