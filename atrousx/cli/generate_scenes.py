"""``atrousx generate-scenes``: writes generated pictures with labels, to train and to try on."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from .. import data
from ._progress import Progress
from ._shared import CommandError, one_line

if TYPE_CHECKING:
    from ._shared import Commands

DESCRIPTION = """Writes generated scenes and their labels in the layout of PASCAL VOC, with the
lists train, val and trainval. The classes depend on fine edges, on texture, on size and on a part
of the scene that is far away; never on colour."""


def register(commands: Commands) -> None:
    parser = commands.add_parser(
        "generate-scenes", help="write generated pictures with labels", description=DESCRIPTION
    )
    parser.add_argument("out", type=Path, metavar="DIR", help="a new or empty folder")
    parser.add_argument(
        "--train", type=int, default=200, metavar="N", help="scenes to train on; %(default)s"
    )
    parser.add_argument(
        "--val", type=int, default=50, metavar="N", help="scenes to evaluate on; %(default)s"
    )
    parser.add_argument(
        "--size",
        type=_size,
        default=(321, 321),
        metavar="HxW",
        help="height and width, for instance 375x500; 321x321",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="other scenes; %(default)s"
    )
    parser.set_defaults(run=run)


def _size(text: str) -> tuple[int, int]:
    if not (found := re.fullmatch(r"(\d+)x(\d+)", text)):
        raise argparse.ArgumentTypeError(f"height and width, such as 375x500, got {text}")
    return int(found[1]), int(found[2])


def run(args: argparse.Namespace) -> int:
    data.opencv()  # raises at once if OpenCV is missing
    progress = Progress(args.train + args.val)
    try:
        data.generate_scenes(
            args.out,
            train=args.train,
            val=args.val,
            size=args.size,
            seed=args.seed,
            progress=progress.step,
        )
    except ValueError as error:
        raise CommandError(one_line(error)) from error
    finally:
        progress.close()
    print(f"{args.out}: {args.train + args.val} scenes")
    return 0
