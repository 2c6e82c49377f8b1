"""``atrousx refine``: moves the edges of coarse labels or scores to those of the photograph."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from .. import data
from ..ops import upsample_argmax, upsample_bilinear2d
from ._folders import check_scores_fit, listed, partners, size_text
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


DESCRIPTION = """Refines a labelling of a photograph with the dense CRF. What is refined is a PNG of
labels, or a network's scores: .npy or .npz, floating [labels, height, width], of the photograph's
size or smaller (they are upsampled). Writes the labels as an indexed PNG, and an overlay beside it
(FILE's stem + _overlay.png). With folders, each file of the second is refined with the photograph
of its name, and DIR/NAME.png and DIR/NAME_overlay.png are written."""


def register(commands: Commands) -> None:
    parser = commands.add_parser(
        "refine",
        help="refine coarse labels or a network's scores with the dense CRF",
        description=DESCRIPTION,
    )
    parser.add_argument("image", type=Path, metavar="IMAGE", help="photograph, or folder of them")
    parser.add_argument(
        "labels", type=Path, metavar="LABELS", help="labels or scores, or folder of them"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="PNG, or a folder")
    parser.add_argument(
        "--probabilities", action="store_true", help="the scores are probabilities, not logits"
    )
    parser.add_argument(
        "--labels-confidence",
        type=float,
        default=0.7,
        metavar="P",
        help="probability that a label of a PNG is right, the rest spread evenly; 0.7",
    )
    parser.add_argument(
        "--unknown",
        type=int,
        default=255,
        metavar="N",
        help="label of a PNG that means none known; 255",
    )
    add_device_option(parser)
    add_crf_options(parser)
    parser.set_defaults(run=run)


def label_logits(labels: torch.Tensor, num_labels: int, confidence: float) -> torch.Tensor:
    r"""Returns log-probabilities of hard labels.

    The given label has the probability p. The rest is spread evenly over the other labels:

    .. math:: P_i(l) = p \text{ if } l = y_i, \text{ else } (1 - p) / (L - 1)

    Args:
        labels: ``[H, W]`` int64 in 0..L-1. -1 means unknown: every label then has 1/L.
        num_labels: number of labels, L, at least 2.
        confidence: p, strictly between 1/L and 1.

    Returns:
        ``[L, H, W]`` float32.
    """
    given = labels == torch.arange(num_labels, device=labels.device)[:, None, None]
    probabilities = torch.full(given.shape, (1 - confidence) / (num_labels - 1))
    probabilities = torch.where(given, confidence, probabilities.to(labels.device))
    return torch.where(labels < 0, 1 / num_labels, probabilities).log()


class Coarse(NamedTuple):
    """The input of the refinement: logits of the labels that may win, and the labels before."""

    logits: torch.Tensor  # [L, h, w]
    names: data.Image  # [L] uint8, the number that is written for each label
    before: data.Image  # [H, W] uint8
    counted: NDArray[np.bool_]  # [H, W], the pixels that the share of changed pixels counts


def run(args: argparse.Namespace) -> int:
    data.opencv()  # raises at once if OpenCV is missing
    device = chosen_device(args)
    if args.image.is_dir() or args.labels.is_dir():
        return _refine_folders(args, device)
    if args.out.suffix.lower() != ".png":
        raise CommandError(f"--out must name a .png file, got {args.out}")
    make_folder(args.out.parent)
    changed = _refine_file(args.image, args.labels, args.out, args, device)
    print(f"{args.out}: {changed:.1%} of the labelled pixels changed")
    return 0


def _refine_folders(args: argparse.Namespace, device: torch.device) -> int:
    found = listed(args.labels, "LABELS", (".png", *data.SCORES_SUFFIXES))
    photographs = partners(found, args.image, "IMAGE", data.IMAGE_SUFFIXES, "photograph")
    make_folder(args.out)
    inputs = {path.resolve() for path in (*found, *photographs)}
    progress, done = Progress(len(found)), 0
    for labels, image in zip(found, photographs, strict=True):
        out = args.out / f"{labels.stem}.png"
        try:
            if out.resolve() in inputs:
                raise CommandError(f"{out} is an input: --out must be another folder")
            _refine_file(image, labels, out, args, device)
            done += 1
        except CommandError as error:
            progress.report(f"atrousx refine: {error}")
        progress.step()
    progress.close()
    print(f"{done} of {len(found)} done")
    return 0 if done == len(found) else 2


def _refine_file(
    image_path: Path, labels_path: Path, out: Path, args: argparse.Namespace, device: torch.device
) -> float:
    """Writes the refined labels and their overlay, and returns the share of changed pixels."""
    try:
        image = data.read_image(image_path)
        given = _from_scores if labels_path.suffix.lower() in data.SCORES_SUFFIXES else _from_labels
        coarse = given(labels_path, image_path, image.shape[:2], args, device)
        guide = torch.from_numpy(image).to(device).permute(2, 0, 1)[None].float()
        with torch.inference_mode():
            logits = upsample_bilinear2d(coarse.logits[None], size=image.shape[:2])
            crf = make_crf(logits.shape[1], args).to(device)
            winners = run_crf(crf, logits, guide).argmax(1)[0]
        refined = coarse.names[winners.cpu().numpy()]
        data.write_labels(out, refined)
        data.write_image(out.with_name(f"{out.stem}_overlay.png"), data.overlay(image, refined))
    except (data.ImageError, OSError) as error:
        raise CommandError(one_line(error)) from error
    changed = (refined != coarse.before)[coarse.counted]
    return float(changed.mean())


def _from_scores(
    path: Path,
    image: Path,
    size: tuple[int, ...],
    args: argparse.Namespace,
    device: torch.device,
) -> Coarse:
    scores = data.read_scores(path, args.probabilities)
    check_scores_fit(path, scores.shape[1:], image, size)
    # An indexed PNG has 256 entries.
    if not 2 <= len(scores) <= 256:
        raise CommandError(f"{path} must have scores of 2 to 256 labels, found {len(scores)}")
    logits = torch.from_numpy(scores).to(device)
    before = upsample_argmax(logits[None], size)[0].cpu().numpy().astype(np.uint8)
    return Coarse(logits, np.arange(len(scores), dtype=np.uint8), before, np.full(size, True))


def _from_labels(
    path: Path,
    image: Path,
    size: tuple[int, ...],
    args: argparse.Namespace,
    device: torch.device,
) -> Coarse:
    labels = data.read_labels(path)
    if labels.shape != size:
        raise CommandError(
            f"{path} is {size_text(labels.shape)}, but {image} is {size_text(size)}: "
            "labels must have the size of the image"
        )
    # Only labels that occur can win, so the CRF computes only these.
    known = np.unique(labels[labels != args.unknown])
    if len(known) < 2:
        raise CommandError(
            f"{path} must hold at least two labels besides {args.unknown}, found {len(known)}"
        )
    if not 1 / len(known) < args.labels_confidence < 1:
        raise CommandError(
            f"--labels-confidence must lie between 1/{len(known)} and 1, both excluded, "
            f"for {len(known)} labels, got {args.labels_confidence:g}"
        )
    indices = np.where(labels == args.unknown, -1, np.searchsorted(known, labels))
    logits = label_logits(torch.from_numpy(indices).to(device), len(known), args.labels_confidence)
    return Coarse(logits, known, labels, labels != args.unknown)
