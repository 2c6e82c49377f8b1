"""The options that name a model and how it looks at images, for all commands that run one."""

from __future__ import annotations

import argparse
import math
from typing import Any, cast

from .. import models
from ..models.checkpoints.architecture import BUILDERS, Architecture, architecture_of
from ..models.checkpoints.files import read_weights
from ..models.deeplab_v1 import FC6
from ..models.deeplab_v2 import RATES
from ..models.deeplab_v3plus import BACKBONES as V3PLUS_BACKBONES
from ..models.forms import V3
from ..models.segmenter import Segmenter
from ._shared import CommandError, one_line

PREPROCESS = {
    "caffe": models.Preprocess.caffe,
    "imagenet": models.Preprocess.imagenet,
    "tensorflow": models.Preprocess.tensorflow,
}


def add_weights_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weights",
        required=True,
        metavar="FILE",
        help="weights of this package or of public code for DeepLab v2, v3 or v3+: a file of "
        "torch.save, a safetensors file, or the folder or index of its shards",
    )
    parser.add_argument(
        "--ema", action="store_true", help="take the running average of the weights from the file"
    )


def add_crf_switch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--crf",
        action="store_true",
        help="refine the edges with the dense CRF; for v1 by default at 121 pixels, 5 grey levels",
    )


def add_look_options(parser: argparse.ArgumentParser) -> None:
    """Adds --scales, --flip, --tile and --preprocess."""
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
        "RGB normalisation; tensorflow, RGB from -1 to 1; default: v1 and v2 caffe, Xception "
        "tensorflow, the others imagenet",
    )


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
        help="of v3 and v3+, pixels per feature; 16, in the layouts of torchvision and mmseg 8",
    )
    group.add_argument("--model", choices=tuple(BUILDERS))
    group.add_argument("--backbone", choices=("vgg16", *V3PLUS_BACKBONES))
    group.add_argument("--layout", choices=tuple(V3), help="of v3 and v3+")
    group.add_argument("--num-classes", type=int, metavar="N")


def _scales(text: str) -> tuple[float, ...]:
    scales = tuple(float(part) for part in text.split(","))
    if not all(0 < scale < math.inf for scale in scales):
        raise argparse.ArgumentTypeError(f"positive numbers, got {text}")
    return scales


def load_model(args: argparse.Namespace) -> tuple[Segmenter, int]:
    """Returns the model that the weights belong to, and its number of classes."""
    try:
        weights = read_weights(args.weights, ema=args.ema)
        told = architecture_of(weights)
        options: dict[str, Any] = {} if told is None else _chosen(args, told)
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


def _chosen(args: argparse.Namespace, told: Architecture) -> dict[str, Any]:
    """Returns the user's choices that the weights leave open.

    Raises ValueError if an option contradicts the weights.
    """
    # The first paper has one backbone, so its builder takes none.
    known: dict[str, object] = {"backbone": "vgg16"} | told.arguments | {"model": told.version}
    name, values = told.choice or ("", ())
    chosen: dict[str, Any] = {}
    for option in ("model", "backbone", "layout", "num_classes", "fc6", "head"):
        given = getattr(args, option)
        if given is None or given == known.get(option):
            continue
        if option != name or given not in values:
            flag = f"--{option.replace('_', '-')}"
            raise ValueError(f"{flag} {given}, but the weights are those of {told}")
        chosen[option] = given
    return chosen
