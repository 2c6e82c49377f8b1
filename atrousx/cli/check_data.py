"""``atrousx check-data``: reads every file of a dataset and lists what is wrong."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from .. import data
from ._dataset import add_dataset_options, chosen_dataset
from ._progress import Progress

if TYPE_CHECKING:
    from ._shared import Commands

DESCRIPTION = """Reads every photograph and every label file of a split. Lists files that are
missing or unreadable, sizes that differ, and labels that are no class. The exit status is 2 if
there are any."""


def register(commands: Commands) -> None:
    parser = commands.add_parser(
        "check-data", help="find what is wrong with a dataset", description=DESCRIPTION
    )
    add_dataset_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    data.opencv()  # raises at once if OpenCV is missing
    dataset = chosen_dataset(args)
    progress = Progress(len(dataset))
    try:
        faults = dataset.check(progress.step)
    finally:
        progress.close()
    for fault in faults:
        print(f"atrousx check-data: {fault}", file=sys.stderr)
    print(f"{len(dataset)} samples, {dataset.num_classes} classes, {len(faults)} faults")
    return 2 if faults else 0
