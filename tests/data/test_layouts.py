"""Datasets by the name of their layout, and labels whose zero means unknown."""

import shutil

import numpy as np
import pytest

from atrousx.data import (
    VOC,
    Cityscapes,
    DatasetError,
    Folder,
    open_dataset,
    read_labels,
    write_labels,
)
from tests.data import layouts


@pytest.mark.parametrize(
    ("kind", "write", "split", "cls", "names"),
    [
        ("voc", layouts.write_voc, "val", VOC, ("three",)),
        ("voc", layouts.write_voc, None, VOC, ("one", "two")),
        (
            "cityscapes",
            layouts.write_cityscapes,
            "val",
            Cityscapes,
            sum(layouts.CITIES.values(), ()),
        ),
        ("folder", layouts.write_folder, "train", Folder, ("one", "two")),
        ("folder", layouts.write_folder, None, Folder, ("one", "three", "two")),
    ],
)
def test_open_dataset(tmp_path, kind, write, split, cls, names):
    dataset = open_dataset(kind, write(tmp_path), split)
    assert type(dataset) is cls
    assert dataset.names == names


def test_zero_label_means_unknown(tmp_path):
    root = layouts.write_folder(tmp_path)
    numbers = np.array([[0, 1, 2], [3, 255, 0]], np.uint8)
    write_labels(root / "labels" / "one.png", numbers)
    dataset = open_dataset("folder", root, "train", reduce_zero_label=True)
    labels = dataset._labels(root / "labels" / "one.png")
    assert labels.tolist() == [[255, 0, 1], [2, 255, 255]]
    # A benchmark's server wants the numbers of the files.
    (root / "out.png").write_bytes(dataset.label_file(labels))
    assert read_labels(root / "out.png").tolist() == [[0, 1, 2], [3, 0, 0]]
    write_labels(root / "labels" / "one.png", numbers + 1)
    with pytest.raises(DatasetError, match=r"one\.png: 1 pixels hold 4, which this dataset of 3"):
        dataset[0]


def test_open_dataset_refuses_what_it_does_not_know(tmp_path):
    with pytest.raises(ValueError, match="one of voc, cityscapes, folder, got 'ade'"):
        open_dataset("ade", tmp_path, "train")
    layouts.write_cityscapes(tmp_path)
    with pytest.raises(ValueError, match="reduce_zero_label is not for cityscapes"):
        open_dataset("cityscapes", tmp_path, "val", reduce_zero_label=True)


@pytest.mark.parametrize(
    ("kind", "write", "split", "truth"),
    [
        ("voc", layouts.write_voc, "val", "SegmentationClass"),
        ("cityscapes", layouts.write_cityscapes, "test", "gtFine"),
        ("folder", layouts.write_folder, None, "labels"),
    ],
)
def test_splits_without_labels(tmp_path, kind, write, split, truth):
    root = write(tmp_path)
    shutil.rmtree(root / truth)
    if split == "test":
        (root / "leftImg8bit" / "val").rename(root / "leftImg8bit" / "test")
    with pytest.raises(DatasetError):
        open_dataset(kind, root, split)
    dataset = open_dataset(kind, root, split, truth=False)
    assert dataset.check() == []
    assert all((sample.labels == 255).all() for sample in dataset)
    assert dataset[0].labels.shape == layouts.SIZE
    dataset.files(0).image.write_bytes(b"no image")
    assert len(dataset.check()) == 1
