"""The best and the worst pictures of an evaluation, drawn small for the page."""

from __future__ import annotations

import base64
import bisect
import math
from typing import NamedTuple

import numpy as np
import torch

from ...data import Image, opencv, png, voc_palette
from ...metrics import ConfusionMatrix

COUNT = 4
LONGEST = 320  # pixels of a drawn picture


class Shown(NamedTuple):
    """One picture beside truth and prediction."""

    mean_iou: float
    number: int  # in the dataset
    name: str
    photograph: str  # this and the next two are data URIs
    truth: str
    prediction: str


class Extremes:
    """Keeps the pictures with the highest and the lowest mean IoU.

    The mean IoU of a picture is over the classes that occur or are predicted in it.
    """

    def __init__(self, num_classes: int, count: int = COUNT) -> None:
        self.num_classes, self.count = num_classes, count
        self.found: list[Shown] = []  # by mean IoU, then index

    def add(self, index: int, name: str, image: Image, truth: Image, predicted: Image) -> None:
        confusion = ConfusionMatrix(self.num_classes)
        confusion.update(torch.from_numpy(predicted), torch.from_numpy(truth))
        score = confusion.mean_iou()
        if math.isnan(score):
            return
        place = bisect.bisect([shown[:2] for shown in self.found], (score, index))
        # Only what may stay is drawn.
        if len(self.found) < 2 * self.count or place != self.count:
            drawn = _draw(image, truth, predicted)
            self.found.insert(place, Shown(score, index, name, *drawn))
            self._forget()

    def merge(self, others: list[Shown]) -> None:
        """Adds what another process has found."""
        self.found = sorted([*self.found, *others])
        self._forget()

    def _forget(self) -> None:
        if len(self.found) > 2 * self.count:
            del self.found[self.count : -self.count]

    def best_and_worst(self) -> tuple[list[Shown], list[Shown]]:
        """Returns the best, best first, and the worst, worst first; no picture is in both."""
        half = min(self.count, len(self.found) // 2)
        best = self.found[len(self.found) - min(self.count, len(self.found) - half) :]
        return best[::-1], self.found[:half]


def _draw(image: Image, truth: Image, predicted: Image) -> tuple[str, str, str]:
    cv2 = opencv()
    height, width = truth.shape
    scale = min(1.0, LONGEST / max(height, width))
    size = (max(1, round(scale * width)), max(1, round(scale * height)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    _, jpeg = cv2.imencode(".jpg", small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 82])
    maps = (
        png.encode_indexed(
            np.asarray(cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST), np.uint8),
            voc_palette(),
        )
        for labels in (truth, predicted)
    )
    truth_png, predicted_png = (_uri("png", encoded) for encoded in maps)
    return _uri("jpeg", jpeg.tobytes()), truth_png, predicted_png


def _uri(kind: str, encoded: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(encoded).decode()}"
