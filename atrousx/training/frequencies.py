"""Class weights from the frequencies of the classes in the training labels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..data import SegmentationDataset


def median_frequency_weights(
    dataset: SegmentationDataset, progress: Callable[[], None] | None = None
) -> Tensor:
    r"""Returns a weight for each class: large for rare classes.

    .. math:: w_c = \mathrm{median}(f) / f_c

    where :math:`f_c` is the share of the labelled pixels that have class c, in the images in which
    c occurs. The median is over the classes that occur. A class that does not occur has weight 1.

    Args:
        dataset: all its labels are read.
        progress: called after each image.

    Returns:
        ``[classes]`` float32.

    Raises:
        DatasetError: a file cannot be read.

    Source: arXiv:1411.4734 section 6.3.2.
    """
    pixels = np.zeros(dataset.num_classes)
    labelled = np.zeros(dataset.num_classes)
    for index in range(len(dataset)):
        labels = dataset[index].labels
        counts = np.bincount(labels.ravel(), minlength=256)[: dataset.num_classes]
        pixels += counts
        labelled += np.where(counts > 0, counts.sum(), 0)
        if progress is not None:
            progress()
    occurs = pixels > 0
    shares = pixels / np.maximum(labelled, 1)
    weights = np.ones(dataset.num_classes)
    if occurs.any():
        weights[occurs] = np.median(shares[occurs]) / shares[occurs]
    return torch.tensor(weights, dtype=torch.float32)
