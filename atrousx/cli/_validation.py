"""Reads a validation set from folders of photographs, scores and true labels, matched by name."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from .. import data
from ..crf import IGNORED, Sample
from ._folders import check_scores_fit, listed, partners, size_text
from ._shared import CommandError


class Files(NamedTuple):
    image: Path
    scores: Path
    labels: Path


def find_files(images: Path, scores: Path, labels: Path) -> list[Files]:
    """Returns the files that belong together by name, one triple for each scores file."""
    found = listed(scores, "--scores", data.SCORES_SUFFIXES)
    photographs = partners(found, images, "--images", data.IMAGE_SUFFIXES, "photograph")
    true = partners(found, labels, "--labels", (".png",), "labels")
    return [Files(*files) for files in zip(photographs, found, true, strict=True)]


def load_sample(files: Files, probabilities: bool, device: torch.device) -> Sample:
    """Reads three files and checks that they fit together."""
    try:
        image, labels = data.read_image(files.image), data.read_labels(files.labels)
        scores = data.read_scores(files.scores, probabilities)
    except data.ImageError as error:
        raise CommandError(str(error)) from error
    size = image.shape[:2]
    if labels.shape != size:
        raise CommandError(
            f"{files.labels} is {size_text(labels.shape)}, but {files.image} is {size_text(size)}"
        )
    check_scores_fit(files.scores, scores.shape[1:], files.image, size)
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
