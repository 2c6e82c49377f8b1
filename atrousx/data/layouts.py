"""The layouts of datasets by name, as the command line gives them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from .cityscapes import Cityscapes
from .dataset import IGNORED, LabelTable, SegmentationDataset
from .folder import Folder
from .voc import VOC

DATASETS: dict[str, Callable[..., SegmentationDataset]] = {
    "voc": VOC,
    "cityscapes": Cityscapes,
    "folder": Folder,
}


def open_dataset(
    kind: str,
    root: str | Path,
    split: str | None,
    *,
    reduce_zero_label: bool = False,
    truth: bool = True,
) -> SegmentationDataset:
    """Opens a dataset whose layout is given by name.

    Args:
        kind: "voc", "cityscapes" or "folder".
        root: the folder of the dataset.
        split: the name of the split. None is the default of the layout: "train", or for "folder"
            every photograph.
        reduce_zero_label: whether 0 in the files means that the label is unknown, as in ADE20K.
            0 then becomes 255, and k becomes k - 1. ``classes.txt`` names the classes from 1 on.
        truth: whether the split has labels.

    Raises:
        DatasetError: the files are not as the layout demands.
        ValueError: ``kind`` is none of the three, or ``reduce_zero_label`` is given for Cityscapes.

    Example:
        >>> import tempfile
        >>> from atrousx.data import generate_scenes, open_dataset
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     generate_scenes(folder, train=2, val=1, size=(64, 96))
        ...     open_dataset("voc", folder, "val").classes[:3]
        ('background', 'wheel', 'pebble')
    """
    if kind not in DATASETS:
        raise ValueError(f"kind must be one of {', '.join(DATASETS)}, got {kind!r}")
    given = () if split is None else (split,)
    dataset = DATASETS[kind](root, *given, truth=truth)
    if reduce_zero_label:
        if dataset.table is not None:
            raise ValueError(
                f"reduce_zero_label is not for {kind}, whose labels have other numbers"
            )
        dataset.table = _shifted()
    return dataset


def _shifted() -> LabelTable:
    """ADE20K's numbers: 0 means unknown, and class k has the number k + 1."""
    numbers = np.arange(256)
    of_number = np.where(numbers % 255 == 0, IGNORED, numbers - 1).astype(np.uint8)
    of_label = ((numbers + 1) % 256).astype(np.uint8)
    return LabelTable(of_number, of_label)
