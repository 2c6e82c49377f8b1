"""``atrousx evaluate``: measures a DeepLab on a dataset, in one process or under torchrun."""

from __future__ import annotations

import argparse
import contextlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed

from .. import DenseCRF, data, metrics
from .._processes import is_first, rank_and_world
from ..data import SegmentationDataset
from ..metrics import Evaluation, Labels
from ..metrics.trimap import WIDTHS
from ..models.segmenter import Segmenter
from ._dataset import add_dataset_options, chosen_dataset
from ._evaluation import Extremes, Outputs, Results, text_table
from ._model import (
    add_crf_switch,
    add_look_options,
    add_model_options,
    add_weights_option,
    load_model,
)
from ._processes import process_group
from ._progress import Progress
from ._shared import (
    CommandError,
    add_crf_options,
    add_device_option,
    chosen_device,
    crf_arguments,
    make_crf,
    one_line,
)

if TYPE_CHECKING:
    from ._shared import Commands

DESCRIPTION = """Prints mean IoU, IoU of each class and accuracy of a DeepLab on a dataset. Under
torchrun each process labels its share of the images; each image counts once."""


def register(commands: Commands) -> None:
    parser = commands.add_parser(
        "evaluate", help="measure a DeepLab on a dataset", description=DESCRIPTION
    )
    add_dataset_options(parser, split="val")
    add_weights_option(parser)
    add_crf_switch(parser)
    _add_measure_options(parser)
    _add_output_options(parser)
    add_look_options(parser)
    parser.add_argument(
        "--workers",
        type=_count,
        default=2,
        metavar="N",
        help="processes that read images while the model computes; 0 for none; 2",
    )
    add_device_option(parser)
    add_model_options(parser)
    add_crf_options(parser)
    parser.set_defaults(run=run)


def _add_measure_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("more measures")
    group.add_argument(
        "--boundary", action="store_true", help="boundary IoU, near the contours of each class"
    )
    group.add_argument(
        "--trimap",
        action="store_true",
        help="mean IoU within 1 to 40 pixels of the truth's ignored pixels",
    )


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("files to write")
    group.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="gets evaluation.json, confusion.png and, with --trimap, trimap.png",
    )
    group.add_argument(
        "--write",
        type=Path,
        metavar="DIR",
        help="gets the labels of each image in the format of the benchmark's server",
    )
    group.add_argument(
        "--no-truth",
        action="store_true",
        help="the split has no labels, as the test splits of benchmarks: only --write",
    )
    group.add_argument(
        "--report",
        type=Path,
        metavar="FILE.html",
        help="one page with all results and the best and worst images; needs no other file",
    )


def _count(text: str) -> int:
    if (value := int(text)) < 0:
        raise ValueError
    return value


# argparse shows this name in its message about a wrong value.
_count.__name__ = "number of processes"


def run(args: argparse.Namespace) -> int:
    data.opencv()  # raises before the weights are read if OpenCV is missing
    if args.no_truth:
        _check_without_truth(args)
    with process_group(chosen_device(args)) as device:
        model, classes = load_model(args)
        dataset = chosen_dataset(args, truth=not args.no_truth)
        if classes != dataset.num_classes:
            raise CommandError(
                f"--weights {args.weights}: of {classes} classes, "
                f"but {args.root} has {dataset.num_classes}"
            )
        outputs = Outputs(args, dataset)
        crf = make_crf(classes, args, model.crf_defaults).to(device) if args.crf else None
        found = _Run(args, dataset, outputs)
        evaluation = found.evaluate(model.to(device), crf)
        found.gather()
        if is_first() and args.no_truth:
            print(f"the labels of {len(dataset)} images are in {args.write}")
        elif is_first():
            results = Results(dataset.classes, evaluation, _settings(args, model))
            # First the table: a full disk must not cost a long evaluation.
            print(text_table(results))
            outputs.write_results(results, found.extremes)
    return 0


def _check_without_truth(args: argparse.Namespace) -> None:
    if args.write is None:
        raise CommandError("--no-truth: without labels nothing is measured; give --write DIR")
    for option in ("out", "report", "boundary", "trimap"):
        if getattr(args, option):
            raise CommandError(f"--{option} needs the labels that --no-truth says are missing")


class _Run:
    """One evaluation: what happens to each image, and which images are shown."""

    def __init__(
        self, args: argparse.Namespace, dataset: SegmentationDataset, outputs: Outputs
    ) -> None:
        self.args, self.dataset, self.outputs = args, dataset, outputs
        self.extremes = Extremes(dataset.num_classes)

    def evaluate(self, model: Segmenter, crf: DenseCRF | None) -> Evaluation:
        args = self.args
        # The first process has the most images, and shows its own progress.
        rank, world = rank_and_world()
        progress = Progress(math.ceil(len(self.dataset) / world) if rank == 0 else 0)
        with contextlib.closing(progress):
            try:
                return metrics.evaluate(
                    model,
                    self.dataset,
                    scales=args.scales,
                    flip=args.flip,
                    crf=crf,
                    tile=args.tile,
                    boundary=args.boundary,
                    trimap_widths=WIDTHS if args.trimap else (),
                    workers=args.workers,
                    progress=progress.step,
                    on_result=self._on_result,
                )
            except (OSError, ValueError, RuntimeError) as error:
                # For instance a broken image, a full disk, or an image too large for the memory.
                raise CommandError(one_line(error)) from error

    def _on_result(self, index: int, sample: data.Sample, found: Labels) -> None:
        labels = found.final.to(torch.uint8).cpu().numpy()
        self.outputs.write_labels(index, labels)
        if self.outputs.report is not None:
            self.extremes.add(index, sample.name, sample.image, sample.labels, labels)

    def gather(self) -> None:
        """Gives the first process the pictures that the others have kept."""
        own, world = rank_and_world()
        if self.outputs.report is None or world == 1:
            return
        everyone: list[Any] = [None] * world
        distributed.all_gather_object(everyone, self.extremes.found)
        for rank, kept in enumerate(everyone):
            if rank != own:
                self.extremes.merge(kept)


def _settings(args: argparse.Namespace, model: Segmenter) -> dict[str, object]:
    """Returns what was evaluated and how, for the JSON file and the page."""
    usual = None if args.format == "folder" else args.usual_split
    split = args.split or usual
    given = {name: getattr(args, name) for name in ("output_stride", "tile", "preprocess")}
    return {
        "weights": Path(args.weights).name,
        "dataset": f"{args.root.resolve().name}, {split}" if split else args.root.resolve().name,
        "model": type(model).__name__,
        "scales": list(args.scales),
        "flip": args.flip,
        **{name: value for name, value in given.items() if value is not None},
        "crf": crf_arguments(args, model.crf_defaults) if args.crf else None,
    }
