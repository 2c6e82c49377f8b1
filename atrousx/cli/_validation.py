"""A validation set as folders: photographs, scores and true labels, matched by name."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from .. import data
from ..crf import IGNORED, Sample
from ._shared import CommandError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".tif", ".tiff", ".webp")


class Files(NamedTuple):
    image: Path
    scores: Path
    labels: Path


def find_files(images: Path, scores: Path, labels: Path) -> list[Files]:
    """The files that belong together, by name, one triple for each scores file."""
    by_stem = {path.stem: path for path in _listed(images, "--images", IMAGE_SUFFIXES)}
    true = {path.stem: path for path in _listed(labels, "--labels", (".png",))}
    found = _listed(scores, "--scores", data.SCORES_SUFFIXES)
    for what, option, folder, names in (
        ("photograph", "--images", images, by_stem),
        ("labels", "--labels", labels, true),
    ):
        if missing := [path for path in found if path.stem not in names]:
            more = f", nor for {len(missing) - 1} more" if len(missing) > 1 else ""
            raise CommandError(f"{option} {folder}: no {what} for {missing[0].name}{more}")
    return [Files(by_stem[path.stem], path, true[path.stem]) for path in found]


def _listed(folder: Path, option: str, suffixes: Sequence[str]) -> list[Path]:
    try:
        paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in suffixes)
    except OSError as error:
        raise CommandError(f"{option} {folder}: {error.strerror}") from error
    if not paths:
        raise CommandError(f"{option} {folder}: holds no file ending in {', '.join(suffixes)}")
    for one, other in itertools.pairwise(paths):
        if one.stem == other.stem:
            raise CommandError(f"{option} {folder}: {one.name} and {other.name} have one name")
    return paths


def load_sample(files: Files, probabilities: bool, device: torch.device) -> Sample:
    """Reads three files and sees that they belong together."""
    try:
        image, labels = data.read_image(files.image), data.read_labels(files.labels)
        scores = data.read_scores(files.scores, probabilities)
    except data.ImageError as error:
        raise CommandError(str(error)) from error
    size = image.shape[:2]
    if labels.shape != size:
        raise CommandError(
            f"{files.labels} is {_size(labels.shape)}, but {files.image} is {_size(size)}"
        )
    if scores.shape[1] > size[0] or scores.shape[2] > size[1]:
        raise CommandError(
            f"{files.scores} is {_size(scores.shape[1:])}, larger than {files.image}, "
            f"which is {_size(size)}"
        )
    if (largest := labels[labels != IGNORED].max(initial=0)) >= len(scores):
        raise CommandError(
            f"{files.labels} holds label {largest}, "
            f"but {files.scores} has scores for 0 to {len(scores) - 1}"
        )
    return Sample(
        torch.from_numpy(image).permute(2, 0, 1).to(device),
        torch.from_numpy(scores).to(device),
        torch.from_numpy(labels).to(device, torch.int64),
    )


def _size(shape: Sequence[int]) -> str:
    return f"{shape[1]}x{shape[0]}"
