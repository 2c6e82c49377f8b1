"""The layout of Cityscapes: labelIds in the files, 19 classes when read."""

import cv2
import numpy as np
import pytest

from atrousx.data import CITYSCAPES_CLASSES, Cityscapes, DatasetError
from tests.data import layouts

# From cityscapesscripts/helpers/labels.py: every labelId whose trainId is not 255.
TRAIN_IDS = {
    7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole",
    19: "traffic light", 20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky",
    24: "person", 25: "rider", 26: "car", 27: "truck", 28: "bus", 31: "train", 32: "motorcycle",
    33: "bicycle",
}  # fmt: skip


@pytest.fixture
def root(tmp_path):
    return layouts.write_cityscapes(tmp_path)


def test_photographs_of_all_cities_by_name(root):
    dataset = Cityscapes(root, "val")
    assert dataset.names == tuple(name for names in layouts.CITIES.values() for name in names)
    assert dataset.files(2).image == root / "leftImg8bit/val/bonn/bonn_0_1_leftImg8bit.png"
    assert dataset.label_file_name(2) == "bonn_0_1.png"
    assert dataset.num_classes == 19


def test_label_ids_become_classes_and_return(root):
    dataset = Cityscapes(root, "val")
    numbers = np.arange(34, dtype=np.uint8).reshape(2, 17)
    path = dataset.files(0).labels
    layouts.write_grey(path, numbers)
    cv2.imwrite(str(dataset.files(0).image), np.zeros((2, 17, 3), np.uint8))
    labels = dataset[0].labels
    for number, label in zip(numbers.flat, labels.flat, strict=True):
        name = CITYSCAPES_CLASSES[label] if label != 255 else None
        assert name == TRAIN_IDS.get(int(number)), number
    file = cv2.imdecode(np.frombuffer(dataset.label_file(labels), np.uint8), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(file, np.where(np.isin(numbers, list(TRAIN_IDS)), numbers, 0))


def test_files_of_train_ids_are_refused(root):
    dataset = Cityscapes(root, "val")
    layouts.write_grey(dataset.files(0).labels, layouts.labels(0, (0, 18, 255)))
    with pytest.raises(DatasetError, match="pixels hold 255, which this dataset of 19 classes"):
        dataset[0]


def test_splits_that_cannot_be_read(root):
    with pytest.raises(DatasetError, match="labels of Cityscapes' split test are not public"):
        Cityscapes(root, "test")
    with pytest.raises(DatasetError, match="leftImg8bit/train: No such file or directory"):
        Cityscapes(root)
    (root / "leftImg8bit" / "train" / "bonn").mkdir(parents=True)
    with pytest.raises(DatasetError, match="train: there is no file CITY/NAME_leftImg8bit"):
        Cityscapes(root)
    Cityscapes(root, "val").files(1).labels.unlink()
    with pytest.raises(DatasetError, match=r"aachen_000001_000019_gtFine_labelIds\.png: there is"):
        Cityscapes(root, "val")
