"""``atrousx refine``: pulls the edges of a coarse labelling onto those of the photograph."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from .. import data
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


def register(commands: Commands) -> None:
    parser = commands.add_parser(
        "refine",
        help="refine a coarse labelling with the dense CRF",
        description="Refines coarse labels of a photograph with the dense CRF and writes them as "
        "an indexed PNG, with an overlay beside it (FILE's stem + _overlay.png).",
    )
    parser.add_argument("image", metavar="IMAGE")
    parser.add_argument("labels", metavar="LABELS", help="PNG of the image's size")
    parser.add_argument("--out", required=True, metavar="FILE", help="PNG to write")
    parser.add_argument(
        "--labels-confidence",
        type=float,
        default=0.7,
        metavar="P",
        help="probability that a given label is right, the rest spread evenly; 0.7",
    )
    parser.add_argument(
        "--unknown", type=int, default=255, metavar="N", help="label that means none known; 255"
    )
    add_device_option(parser)
    add_crf_options(parser)
    parser.set_defaults(run=run)


def label_logits(labels: torch.Tensor, num_labels: int, confidence: float) -> torch.Tensor:
    r"""Log-probabilities of hard labels: confidence for the given one, the rest spread evenly.

    .. math:: P_i(l) = p \text{ if } l = y_i, \text{ else } (1 - p) / (L - 1)

    Args:
        labels: ``[H, W]`` int64 in 0..L-1; -1 where nothing is known: 1/L for every label.
        num_labels: L, at least 2.
        confidence: p, strictly between 1/L and 1.

    Returns:
        ``[L, H, W]`` float32.
    """
    given = labels == torch.arange(num_labels, device=labels.device)[:, None, None]
    probabilities = torch.full(given.shape, (1 - confidence) / (num_labels - 1))
    probabilities = torch.where(given, confidence, probabilities.to(labels.device))
    return torch.where(labels < 0, 1 / num_labels, probabilities).log()


def run(args: argparse.Namespace) -> int:
    out, device = Path(args.out), chosen_device(args)
    if out.suffix.lower() != ".png":
        raise CommandError(f"--out must name a .png file, got {args.out}")
    try:
        image, labels = data.read_image(args.image), data.read_labels(args.labels)
    except data.ImageError as error:
        raise CommandError(str(error)) from error
    if labels.shape != image.shape[:2]:
        raise CommandError(
            f"{args.labels} is {_size(labels)}, but {args.image} is {_size(image)}: "
            "labels must have the size of the image"
        )
    make_folder(out.parent)
    refined = _refine(image, labels, args, device)
    try:
        data.write_labels(out, refined)
        data.write_image(out.with_name(f"{out.stem}_overlay.png"), data.overlay(image, refined))
    except OSError as error:
        raise CommandError(one_line(error)) from error
    changed = np.mean((refined != labels)[labels != args.unknown])
    print(f"{out}: {changed:.1%} of the labelled pixels changed")
    return 0


def _refine(
    image: data.Image, labels: data.Image, args: argparse.Namespace, device: torch.device
) -> data.Image:
    # Only labels that occur can win, so only they are computed.
    known = np.unique(labels[labels != args.unknown])
    if len(known) < 2:
        raise CommandError(
            f"{args.labels} must hold at least two labels besides {args.unknown}, "
            f"found {len(known)}"
        )
    if not 1 / len(known) < args.labels_confidence < 1:
        raise CommandError(
            f"--labels-confidence must lie between 1/{len(known)} and 1, both excluded, "
            f"for {len(known)} labels, got {args.labels_confidence:g}"
        )
    indices = np.where(labels == args.unknown, -1, np.searchsorted(known, labels))
    logits = label_logits(torch.from_numpy(indices).to(device), len(known), args.labels_confidence)
    guide = torch.from_numpy(image).to(device).permute(2, 0, 1)[None].float()
    with torch.inference_mode():
        crf = make_crf(len(known), args).to(device)
        winners = run_crf(crf, logits[None], guide).argmax(1)[0]
    refined: data.Image = known[winners.cpu().numpy()]
    return refined


def _size(array: data.Image) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"
