"""The layout of two folders with the same names."""

import numpy as np
import pytest

from atrousx.data import DatasetError, Folder, write_image
from tests.data import layouts


@pytest.fixture
def root(tmp_path):
    return layouts.write_folder(tmp_path)


@pytest.mark.parametrize(
    ("split", "names", "seeds"),
    [
        (None, ("one", "three", "two"), (0, 2, 1)),
        ("train", ("one", "two"), (0, 1)),
        ("val", ("three",), (2,)),
    ],
)
def test_splits(root, split, names, seeds):
    dataset = Folder(root, split)
    assert dataset.names == names
    assert dataset.classes == ("ground", "tree", "house")
    for sample, seed in zip(dataset, seeds, strict=True):
        assert np.array_equal(sample.image, layouts.photograph(seed))
        assert np.array_equal(sample.labels, layouts.labels(seed))


def test_names_may_have_folders(root):
    for kind in ("images", "labels"):
        (root / kind / "b").mkdir()
        (root / kind / "two.png").rename(root / kind / "b" / "two.png")
    layouts.write_list(root / "train.txt", ("b/two", "one"))
    dataset = Folder(root, "train")
    assert dataset.names == ("b/two", "one")
    assert dataset.label_file_name(0) == "two.png"
    assert np.array_equal(dataset[0].labels, layouts.labels(1))
    assert Folder(root).names == ("b/two", "one", "three")


@pytest.mark.parametrize(
    ("classes", "names"),
    [(("a", "b", "c"), ("a", "b", "c")), (3, ("class 0", "class 1", "class 2"))],
)
def test_classes_as_an_argument(root, classes, names):
    (root / "classes.txt").unlink()
    assert Folder(root, classes=classes).classes == names


@pytest.mark.parametrize(
    ("classes", "error", "message"),
    [
        ("abc", TypeError, "classes must be names or a number, got 'abc'"),
        (1.5, TypeError, "classes must be names or a number, got 1.5"),
        (0, DatasetError, "classes: must name 1 to 255 classes, found 0"),
        (256, DatasetError, "classes: must name 1 to 255 classes, found 256"),
    ],
)
def test_classes_that_are_none(root, classes, error, message):
    with pytest.raises(error, match=message):
        Folder(root, classes=classes)


def test_without_classes(root):
    (root / "classes.txt").unlink()
    with pytest.raises(DatasetError, match=r"classes\.txt: there is no such file; write the name"):
        Folder(root)


def test_files_that_are_missing(root):
    with pytest.raises(DatasetError, match=r"neither test\.txt nor splits/test\.txt in it"):
        Folder(root, "test")
    layouts.write_list(root / "train.txt", ("one", "four", "five"))
    message = r"train\.txt: no photograph in images for four, nor for 1 more"
    with pytest.raises(DatasetError, match=message):
        Folder(root, "train")
    (root / "labels" / "three.png").unlink()
    with pytest.raises(DatasetError, match=r"labels/three\.png: there is no such file; .*images"):
        Folder(root)
    write_image(root / "x.png", layouts.photograph(0))
    (root / "x.png").rename(root / "images" / "one.JPG")
    with pytest.raises(DatasetError, match=r"images: one\.JPG and one\.png have one name"):
        Folder(root)


def test_an_empty_folder(tmp_path):
    with pytest.raises(DatasetError, match="images: No such file or directory"):
        Folder(tmp_path, classes=2)
    (tmp_path / "images").mkdir()
    with pytest.raises(DatasetError, match=r"images: there is no file ending in \.jpg"):
        Folder(tmp_path, classes=2)
