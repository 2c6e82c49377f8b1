"""``atrousx segment``: DeepLab on photographs, with or without the dense CRF."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .. import DenseCRF, data, models
from ..models.deeplab_v1 import FC6
from ..models.deeplab_v2 import RATES
from ..models.segmenter import Segmenter
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


PREPROCESS = {"caffe": models.Preprocess.caffe, "imagenet": models.Preprocess.imagenet}


def register(commands: Commands) -> None:
    parser = commands.add_parser(
        "segment",
        help="label every pixel of photographs with DeepLab",
        description="Writes DIR/<name>_labels.png (indexed, colours of PASCAL VOC) and "
        "DIR/<name>_overlay.png for each image.",
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument(
        "--weights",
        required=True,
        metavar="FILE",
        help="a state_dict of this package, of torchvision's deeplabv3 or of a DeepLab v2 port",
    )
    parser.add_argument("--model", choices=("v1", "v2", "v3"), default="v3", help="v3")
    parser.add_argument(
        "--layout",
        choices=("torchvision", "paper"),
        default="torchvision",
        help="v3's; torchvision",
    )
    parser.add_argument("--fc6", choices=tuple(FC6), default="large_fov", help="v1's; large_fov")
    parser.add_argument(
        "--head", choices=tuple(RATES), default="aspp_l", help="v2's branches; aspp_l"
    )
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--crf", action="store_true", help="refine the edges with the dense CRF")
    parser.add_argument(
        "--backbone",
        choices=("resnet50", "resnet101", "vgg16"),
        help="default: v1 vgg16, v2 resnet101, v3 resnet50",
    )
    parser.add_argument(
        "--scales",
        type=_scales,
        default=(1.0,),
        metavar="S,...",
        help="sizes to look at, relative to the photograph's; 1",
    )
    parser.add_argument("--flip", action="store_true", help="also look at the mirror image")
    parser.add_argument(
        "--tile",
        type=int,
        metavar="N",
        help="see large images in tiles of N x N pixels, which overlap and fade into each other",
    )
    parser.add_argument(
        "--preprocess",
        choices=tuple(PREPROCESS),
        help="what the weights were trained on: caffe, BGR minus a mean; imagenet, torchvision's "
        "RGB normalisation; default: v1 and v2 caffe, v3 imagenet",
    )
    parser.add_argument("--num-classes", type=int, default=21, metavar="N", help="21")
    add_device_option(parser)
    add_crf_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    device = chosen_device(args)
    # An indexed PNG has 256 entries.
    if not 2 <= args.num_classes <= 256:
        raise CommandError(f"--num-classes must be in 2..256, got {args.num_classes}")
    crf = make_crf(args.num_classes, args).to(device) if args.crf else None
    model = _load(args).to(device).eval()
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
            # A full disk, or an image too large for the memory: others may still go through.
            progress.report(f"atrousx segment: {name}: {one_line(error)}")
        progress.step()
    progress.close()
    print(f"{done} of {len(args.images)} images done")
    return 0 if done == len(args.images) else 2


def _scales(text: str) -> tuple[float, ...]:
    scales = tuple(float(part) for part in text.split(","))
    if not all(0 < scale < math.inf for scale in scales):
        raise argparse.ArgumentTypeError(f"positive numbers, got {text}")
    return scales


def _build(args: argparse.Namespace) -> Segmenter:
    if args.model == "v1":
        if args.backbone not in (None, "vgg16"):
            raise ValueError(f"--model v1 has the backbone vgg16, got {args.backbone}")
        return models.deeplab_v1(args.num_classes, args.fc6)
    if args.model == "v2":
        return models.deeplab_v2(args.num_classes, args.backbone or "resnet101", args.head)
    return models.deeplab_v3(args.num_classes, args.backbone or "resnet50", layout=args.layout)


def _load(args: argparse.Namespace) -> Segmenter:
    try:
        model = _build(args)
    except ValueError as error:
        raise CommandError(one_line(error)) from error
    try:
        report = models.load_weights(model, args.weights)
    except (OSError, ValueError, ImportError) as error:
        raise CommandError(f"--weights {args.weights}: {one_line(error)}") from error
    if report.source in ("resnet", "vgg16"):
        raise CommandError(
            f"--weights {args.weights}: ImageNet's {report.source} would leave "
            "the classifier random"
        )
    if args.preprocess:
        model.preprocess = PREPROCESS[args.preprocess]()
    return model


def _segment_file(
    name: str,
    out: Path,
    written: dict[Path, str],
    model: Segmenter,
    crf: DenseCRF | None,
    args: argparse.Namespace,
) -> None:
    """One image from file to files; two images must not share their results' name."""
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
    """Labels ``[H, W]`` uint8 of a photograph ``[H, W, 3]`` uint8 in the order red, green, blue."""
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    try:
        refiner = False if crf is None else crf
        before, after, _ = model.predict(pixels, scales, flip, refiner, tile=tile)
    except ValueError as error:
        raise CommandError(one_line(error)) from error
    labels: data.Image = (before if after is None else after)[0].to(torch.uint8).cpu().numpy()
    return labels
