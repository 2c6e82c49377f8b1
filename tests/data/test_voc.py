"""The layout of PASCAL VOC 2012 and the lists of SBD."""

import numpy as np
import pytest

from atrousx.data import VOC, VOC_CLASSES, DatasetError, read_image, voc_palette
from tests.data import layouts

PAIRS = (
    "/JPEGImages/one.jpg /SegmentationClassAug/one.png",
    "JPEGImages/two.jpg SegmentationClass/two.png",
)


@pytest.mark.parametrize("inside", ["", "VOC2012", "VOCdevkit/VOC2012"])
def test_root_may_hold_the_folder(tmp_path, inside):
    layouts.write_voc(tmp_path / inside)
    dataset = VOC(tmp_path)
    assert dataset.names == ("one", "two")
    assert dataset.classes == VOC_CLASSES
    assert np.array_equal(dataset[1].image, layouts.photograph(1))
    assert np.array_equal(dataset[1].labels, layouts.labels(1))


@pytest.mark.parametrize(
    ("split", "labels", "names", "seeds"),
    [
        ("train", None, ("one", "two"), (0, 1)),
        ("val", None, ("three",), (2,)),
        ("train_aug", None, ("one", "two", "three"), (10, 11, 12)),
        ("train", "SegmentationClassAug", ("one", "two"), (10, 11)),
        ("train_aug", "SegmentationClass", ("one", "two", "three"), (0, 1, 2)),
    ],
)
def test_splits_have_their_labels(tmp_path, split, labels, names, seeds):
    dataset = VOC(layouts.write_voc(tmp_path), split, labels=labels)
    assert dataset.names == names
    for sample, seed in zip(dataset, seeds, strict=True):
        assert np.array_equal(sample.labels, layouts.labels(seed))


@pytest.mark.parametrize(
    ("name", "lines", "labels", "seeds"),
    [
        ("mine.txt", ("two", "", "  one  "), None, (1, 0)),
        ("mine_aug.txt", ("two",), None, (11,)),
        ("mine.txt", PAIRS, None, (10, 1)),
        ("mine_aug.txt", PAIRS, "SegmentationClass", (0, 1)),
        ("mine.txt", ("/JPEGImages/two.jpg", "one.jpg"), None, (1, 0)),
    ],
)
def test_split_may_be_a_list_of_names_or_pairs(tmp_path, name, lines, labels, seeds):
    layouts.write_voc(tmp_path / "voc")
    layouts.write_list(tmp_path / name, lines)
    dataset = VOC(tmp_path / "voc", tmp_path / name, labels=labels)
    for sample, seed in zip(dataset, seeds, strict=True):
        assert np.array_equal(sample.labels, layouts.labels(seed))
        assert np.array_equal(sample.image, layouts.photograph(seed % 10))


def test_label_files_are_indexed_pngs_in_the_colours_of_voc(tmp_path):
    dataset = VOC(layouts.write_voc(tmp_path))
    labels = layouts.labels(5, (0, 15, 20, 255))
    path = tmp_path / dataset.label_file_name(0)
    path.write_bytes(dataset.label_file(labels))
    assert path.name == "one.png"
    assert np.array_equal(read_image(path), voc_palette()[labels])


def test_classes_txt_replaces_the_classes(tmp_path):
    layouts.write_voc(tmp_path)
    layouts.write_list(tmp_path / "classes.txt", ("ground", "tree"))
    dataset = VOC(tmp_path)
    assert dataset.classes == ("ground", "tree")
    with pytest.raises(DatasetError, match=r"one\.png: [0-9]+ pixels hold 2, which .* 2 classes"):
        dataset[0]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((), r"mine\.txt: holds no line of text"),
        (("one", "four"), r"JPEGImages/four\.jpg: there is no such file, nor are 1 more files; "),
        (("one 1",), r"mine\.txt, entry 1: must be a name, or the paths .*: one 1"),
        (("one", "a.jpg b.png c"), r"mine\.txt, entry 2: must be a name"),
        (("a/b.jpg SegmentationClass/one.png",), "a: No such file or directory"),
    ],
)
def test_lists_that_cannot_be_used(tmp_path, lines, message):
    layouts.write_voc(tmp_path)
    layouts.write_list(tmp_path / "mine.txt", lines)
    with pytest.raises(DatasetError, match=message):
        VOC(tmp_path, tmp_path / "mine.txt")


def test_folders_that_are_not_there(tmp_path):
    with pytest.raises(DatasetError, match=f"{tmp_path}: there is no folder JPEGImages"):
        VOC(tmp_path)
    layouts.write_voc(tmp_path)
    with pytest.raises(DatasetError, match=r"Segmentation/none\.txt: there is no such list"):
        VOC(tmp_path, "none")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DatasetError, match=r"binary\.txt: not a text file"):
        VOC(tmp_path, tmp_path / "binary.txt")
