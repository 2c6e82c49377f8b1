"""``atrousx segment``: labels photographs with DeepLab, with or without the dense CRF."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from .. import DenseCRF, data, models
from ..models.checkpoints.architecture import BUILDERS, Architecture, architecture_of
from ..models.checkpoints.files import read_weights
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
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument(
        "--crf",
        action="store_true",
        help="refine the edges with the dense CRF; for v1 by default at 121 pixels, 5 grey levels",
    )
    add_model_options(parser)
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
    add_device_option(parser)
    add_crf_options(parser)
    parser.set_defaults(run=run)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "model", "The weights tell it; what is given must agree. They cannot tell these three:"
    )
    group.add_argument(
        "--fc6", choices=tuple(FC6), help="v1's; of 4x4 filters, 4x4_r4 or 4x4_r8 must be given"
    )
    group.add_argument(
        "--head", choices=tuple(RATES), help="v2's; where it has four branches, aspp_l"
    )
    group.add_argument(
        "--output-stride",
        type=int,
        metavar="N",
        help="v3's, pixels per feature; 16, in torchvision's layout 8",
    )
    group.add_argument("--model", choices=tuple(BUILDERS))
    group.add_argument("--backbone", choices=("resnet50", "resnet101", "vgg16"))
    group.add_argument("--layout", choices=("torchvision", "paper"), help="v3's")
    group.add_argument("--num-classes", type=int, metavar="N")


def run(args: argparse.Namespace) -> int:
    data.opencv()  # raises before the weights are read if OpenCV is missing
    device = chosen_device(args)
    model, classes = _load(args)
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


def _scales(text: str) -> tuple[float, ...]:
    scales = tuple(float(part) for part in text.split(","))
    if not all(0 < scale < math.inf for scale in scales):
        raise argparse.ArgumentTypeError(f"positive numbers, got {text}")
    return scales


def _load(args: argparse.Namespace) -> tuple[Segmenter, int]:
    """Returns the model that the weights belong to, and its number of classes."""
    try:
        weights = read_weights(args.weights)
        told = architecture_of(weights)
        options = {} if told is None else _options(args, told)
        model = models.from_weights(weights, **options)
        if args.output_stride is not None:
            models.set_output_stride(cast(models.DeepLabV3, model), args.output_stride)
    except (OSError, ValueError, TypeError, ImportError) as error:
        raise CommandError(f"--weights {args.weights}: {one_line(error)}") from error
    assert told is not None
    classes = cast(int, told.arguments["num_classes"])
    # An indexed PNG has 256 entries.
    if not 2 <= classes <= 256:
        raise CommandError(f"--weights {args.weights}: of 2 to 256 classes, found {classes}")
    if args.preprocess:
        model.preprocess = PREPROCESS[args.preprocess]()
    return model, classes


def _options(args: argparse.Namespace, told: Architecture) -> dict[str, object]:
    """Returns the user's choices that the weights leave open.

    Raises ValueError if an option contradicts the weights.
    """
    # The first paper has one backbone, so its builder takes none.
    known: dict[str, object] = {"backbone": "vgg16"} | told.arguments | {"model": told.version}
    name, values = told.choice or ("", ())
    chosen: dict[str, object] = {}
    for option in ("model", "backbone", "layout", "num_classes", "fc6", "head"):
        given = getattr(args, option)
        if given is None or given == known.get(option):
            continue
        if option != name or given not in values:
            flag = f"--{option.replace('_', '-')}"
            raise ValueError(f"{flag} {given}, but the weights are those of {told}")
        chosen[option] = given
    return chosen


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
