"""The classes of PASCAL VOC, and the colour map of its label files."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip


def voc_palette() -> NDArray[np.uint8]:
    """Returns PASCAL VOC's colours for the labels 0 to 255, ``[256, 3]``: red, green, blue.

    The bits of a label go to red, green and blue in turn, lowest bit first. They fill each colour
    from its highest bit down. Label 1 gives red 128, label 8 gives red 64, and label 15 (bits 1111)
    gives red 192, green 128, blue 128. So neighbouring labels look different. Label 255 is the pale
    (224, 224, 192) of VOC's "void" outlines.

    Example:
        >>> from atrousx.data import voc_palette
        >>> voc_palette()[[0, 1, 15]].tolist()
        [[0, 0, 0], [128, 0, 0], [192, 128, 128]]
    """
    labels = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        colour, position = bit % 3, 7 - bit // 3
        palette[:, colour] |= ((labels >> bit & 1) << position).astype(np.uint8)
    return palette
