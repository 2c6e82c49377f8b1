"""Small label maps and a tiny network for the tests of measures."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from atrousx.models import Preprocess
from atrousx.models.segmenter import Segmenter

CLASSES = 4


class Item(NamedTuple):
    name: str
    image: NDArray[np.uint8]
    labels: NDArray[np.uint8]


class Pictures(list[Item]):
    """A dataset in memory."""

    num_classes, ignore_index = CLASSES, 255


class Tiny(Segmenter):
    """Logits at half the size, by one convolution."""

    fusion = "mean"

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__(Preprocess.imagenet(), None)
        self.layer = nn.Conv2d(3, classes, 3, stride=2, padding=1)
        self.noise = nn.Dropout(0.5)

    def coarse_logits(self, images: Tensor) -> OrderedDict[str, Tensor]:
        return OrderedDict(out=self.noise(self.layer(images)))


def blocks(random: np.random.Generator, height: int, width: int, side: int = 5) -> Tensor:
    """Labels in blocks, of which some are ignored."""
    coarse = random.choice([0, 1, 2, 3, 255], size=(height // side + 1, width // side + 1))
    fine = coarse.repeat(side, 0).repeat(side, 1)[:height, :width]
    return torch.from_numpy(np.ascontiguousarray(fine))


def pictures(count: int = 7) -> Pictures:
    """Photographs of different sizes."""
    random = np.random.default_rng(0)
    found = Pictures()
    for number in range(count):
        height, width = 12 + number, 19 - number
        image = random.integers(256, size=(height, width, 3), dtype=np.uint8)
        found.append(Item(f"picture {number}", image, blocks(random, height, width).byte().numpy()))
    return found
