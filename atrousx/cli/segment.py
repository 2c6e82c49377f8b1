"""``atrousx segment``: DeepLab v3 on photographs, with or without the dense CRF."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .. import DenseCRF, data, models
from ._progress import Progress
from ._shared import (
    CommandError,
    add_crf_options,
    add_device_option,
    chosen_device,
    make_crf,
    make_folder,
    one_line,
    run_crf,
)

if TYPE_CHECKING:
    from ._shared import Commands

# ImageNet's mean and standard deviation, red, green, blue, for images in 0..1.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def register(commands: Commands) -> None:
    parser = commands.add_parser(
        "segment",
        help="label every pixel of photographs with DeepLab v3",
        description="Writes DIR/<name>_labels.png (indexed, colours of PASCAL VOC) and "
        "DIR/<name>_overlay.png for each image.",
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument(
        "--weights", required=True, metavar="FILE", help="torchvision's deeplabv3 state_dict"
    )
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--crf", action="store_true", help="refine the edges with the dense CRF")
    parser.add_argument("--backbone", choices=("resnet50", "resnet101"), default="resnet50")
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
            _segment_file(name, out, written, model, crf)
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


def _load(args: argparse.Namespace) -> torch.nn.Module:
    model: torch.nn.Module = models.deeplab_v3(
        num_classes=args.num_classes, backbone=args.backbone, layout="torchvision"
    )
    try:
        # Not source="auto": ImageNet's weights would leave the classifier random.
        models.load_weights(model, args.weights, source="deeplab_v3")
    except (OSError, ValueError, ImportError) as error:
        raise CommandError(f"--weights {args.weights}: {one_line(error)}") from error
    return model


def _segment_file(
    name: str, out: Path, written: dict[Path, str], model: torch.nn.Module, crf: DenseCRF | None
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
    labels = segment_image(image, model, crf)
    data.write_labels(target, labels)
    written[target] = name
    data.write_image(out / f"{stem}_overlay.png", data.overlay(image, labels))


@torch.inference_mode()
def segment_image(
    image: data.Image, model: torch.nn.Module, crf: DenseCRF | None = None
) -> data.Image:
    """Labels ``[H, W]`` uint8 of a photograph ``[H, W, 3]`` uint8 in the order red, green, blue."""
    device = next(model.parameters()).device
    pixels = torch.from_numpy(image).to(device).permute(2, 0, 1)[None].float()
    mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (MEAN, STD))
    scores = model((pixels / 255 - mean) / std)["out"]
    if crf is not None:
        scores = run_crf(crf, scores, pixels)
    labels: data.Image = scores.argmax(1)[0].to(torch.uint8).cpu().numpy()
    return labels
