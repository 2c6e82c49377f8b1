"""The options that name a dataset, for all commands that read one."""

from __future__ import annotations

import argparse
from pathlib import Path

from .. import data
from ._shared import CommandError, one_line


def add_dataset_options(
    parser: argparse.ArgumentParser, split: str = "train", val_split: str | None = None
) -> None:
    """Adds ROOT, --format, --split and --reduce-zero-label.

    Args:
        parser: gets the options.
        split: default of --split; for --format folder the default is every photograph.
        val_split: default of --val-split. Without it there is no such option.
    """
    parser.add_argument("root", type=Path, metavar="ROOT", help="folder of the dataset")
    group = parser.add_argument_group("dataset")
    group.add_argument(
        "--format",
        required=True,
        choices=tuple(data.DATASETS),
        help="voc: PASCAL VOC's folders; cityscapes: those of Cityscapes; folder: images/ and "
        "labels/ with the same names",
    )
    group.add_argument(
        "--split",
        metavar="S",
        help=f"which list of photographs; {split}, or with --format folder every photograph",
    )
    parser.set_defaults(usual_split=split)
    if val_split is not None:
        group.add_argument(
            "--val-split",
            default=val_split,
            metavar="S",
            help=f"the list to evaluate on; {val_split}",
        )
    group.add_argument(
        "--reduce-zero-label",
        action="store_true",
        help="0 in the label files means unknown, and class k has the number k + 1, as in ADE20K",
    )


def chosen_dataset(
    args: argparse.Namespace, option: str = "split", truth: bool = True
) -> data.SegmentationDataset:
    """Opens the dataset that the options name.

    Args:
        args: the parsed command line.
        option: "split", or "val_split" for the photographs to evaluate on.
        truth: whether the split has labels.

    Raises:
        CommandError: the dataset cannot be opened.
    """
    split = getattr(args, option)
    if split is None and args.format != "folder":
        split = args.usual_split
    try:
        return data.open_dataset(
            args.format,
            args.root,
            split,
            reduce_zero_label=args.reduce_zero_label,
            truth=truth,
        )
    except ValueError as error:
        raise CommandError(one_line(error)) from error
