"""The layout of Cityscapes, with its 19 classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ._files import demand, scan
from ._opencv import opencv
from .dataset import IGNORED, DatasetError, Files, LabelTable, SegmentationDataset
from .images import Image

CITYSCAPES_CLASSES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign",
    "vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus", "train",
    "motorcycle", "bicycle",
)  # fmt: skip
# The number (labelId) of each class in the files.
LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
LARGEST_ID = 33
IMAGE_END, LABELS_END = "_leftImg8bit.png", "_gtFine_labelIds.png"


class Cityscapes(SegmentationDataset):
    """Cityscapes with its fine labels.

    =====================================================  ===============================
    ``leftImg8bit/SPLIT/CITY/NAME_leftImg8bit.png``        the photograph
    ``gtFine/SPLIT/CITY/NAME_gtFine_labelIds.png``         its labels, as labelIds
    =====================================================  ===============================

    Reading turns the labelIds into the 19 classes that are evaluated ("trainIds"). All other
    labelIds become 255. ``label_file`` turns the classes into labelIds again, as the server of the
    benchmark wants them; 255 becomes 0, "unlabeled".

    Args:
        root: the folder that holds leftImg8bit and gtFine.
        split: "train" or "val"; "test" without ``truth``, because its labels are not public.
        truth: whether the split has labels.

    Raises:
        DatasetError: a folder or a file is missing, or the split is "test".

    Source: https://github.com/mcordts/cityscapesScripts.

    Example:
        >>> from atrousx.data import Cityscapes, DatasetError
        >>> try:
        ...     Cityscapes("cityscapes", "test")
        ... except DatasetError as error:
        ...     print(error)
        cityscapes: the labels of Cityscapes' split test are not public; use train or val
    """

    def __init__(self, root: str | Path, split: str = "train", *, truth: bool = True) -> None:
        if split == "test" and truth:
            raise DatasetError(
                f"{root}: the labels of Cityscapes' split test are not public; use train or val"
            )
        photographs = Path(root) / "leftImg8bit" / split
        labels = Path(root) / "gtFine" / split
        names, files = [], []
        for city in scan(photographs)[1]:
            for file in sorted(scan(photographs / city)[0]):
                if file.endswith(IMAGE_END):
                    name = file.removesuffix(IMAGE_END)
                    names.append(name)
                    pair = Files(photographs / city / file, labels / city / f"{name}{LABELS_END}")
                    files.append(pair)
        if not names:
            raise DatasetError(f"{photographs}: there is no file CITY/NAME{IMAGE_END}")
        if truth:
            demand((pair.labels for pair in files), asked_by=photographs)
        super().__init__(names, files, CITYSCAPES_CLASSES, table=_table(), truth=truth)

    def _encode(self, numbers: Image) -> bytes:
        _, encoded = opencv().imencode(".png", np.ascontiguousarray(numbers))
        return bytes(encoded)


def _table() -> LabelTable:
    classes = len(LABEL_IDS)
    of_number = np.full(256, classes, np.uint8)  # not allowed
    of_number[: LARGEST_ID + 1] = IGNORED
    of_number[list(LABEL_IDS)] = np.arange(classes)
    of_label = np.zeros(256, np.uint8)
    of_label[:classes] = LABEL_IDS
    return LabelTable(of_number, of_label)
