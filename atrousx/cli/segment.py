"""``atrousx segment``: labels photographs with DeepLab, with or without the dense CRF."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .. import DenseCRF, data
from ..models.segmenter import Segmenter
from ._model import (
    add_crf_switch,
    add_look_options,
    add_model_options,
    add_weights_option,
    load_model,
)
from ._progress import Progress
from ._shared import (
    CommandError,
    add_crf_options,
    add_device_option,
    chosen_device,
    make_crf,
    make_folder,
    one_line,
)

if TYPE_CHECKING:
    from ._shared import Commands


def register(commands: Commands) -> None:
    parser = commands.add_parser(
        "segment",
        help="label every pixel of photographs with DeepLab",
        description="Writes DIR/<name>_labels.png (indexed, colours of PASCAL VOC) and "
        "DIR/<name>_overlay.png for each image.",
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    add_weights_option(parser)
    parser.add_argument("--out", required=True, metavar="DIR")
    add_crf_switch(parser)
    add_model_options(parser)
    add_look_options(parser)
    add_device_option(parser)
    add_crf_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    data.opencv()  # raises before the weights are read if OpenCV is missing
    device = chosen_device(args)
    model, classes = load_model(args)
    model = model.to(device).eval()
    crf = make_crf(classes, args, model.crf_defaults).to(device) if args.crf else None
    out = Path(args.out)
    make_folder(out)
    progress, done = Progress(len(args.images)), 0
    written: dict[Path, str] = {}
    for name in args.images:
        try:
            _segment_file(name, out, written, model, crf, args)
            done += 1
        except (CommandError, data.ImageError) as error:
            progress.report(f"atrousx segment: {error}")
        except (OSError, RuntimeError) as error:
            # For instance a full disk, or an image too large for the memory. Others may still work.
            progress.report(f"atrousx segment: {name}: {one_line(error)}")
        progress.step()
    progress.close()
    print(f"{done} of {len(args.images)} images done")
    return 0 if done == len(args.images) else 2


def _segment_file(
    name: str,
    out: Path,
    written: dict[Path, str],
    model: Segmenter,
    crf: DenseCRF | None,
    args: argparse.Namespace,
) -> None:
    """Segments one image file and writes the results; two images must not have the same name."""
    stem = Path(name).stem
    target = out / f"{stem}_labels.png"
    if target in written:
        raise CommandError(
            f"{name}: {target} already holds the labels of {written[target]}; "
            "give images of one run different names"
        )
    image = data.read_image(name)
    labels = segment_image(image, model, crf, args.scales, args.flip, args.tile)
    data.write_labels(target, labels)
    written[target] = name
    data.write_image(out / f"{stem}_overlay.png", data.overlay(image, labels))


def segment_image(
    image: data.Image,
    model: Segmenter,
    crf: DenseCRF | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    tile: int | None = None,
) -> data.Image:
    """Returns labels ``[H, W]`` uint8 of an RGB photograph ``[H, W, 3]`` uint8."""
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    try:
        refiner = False if crf is None else crf
        before, after, _ = model.predict(pixels, scales, flip=flip, crf=refiner, tile=tile)
    except ValueError as error:
        raise CommandError(one_line(error)) from error
    labels: data.Image = (before if after is None else after)[0].to(torch.uint8).cpu().numpy()
    return labels
