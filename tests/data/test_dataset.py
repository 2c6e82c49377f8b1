"""What all datasets do alike: as a sequence, in label files, and with files that do not fit."""

import pickle
import shutil

import cv2
import numpy as np
import pytest
import torch

from atrousx.data import (
    DATASETS,
    VOC,
    DatasetError,
    Folder,
    read_labels,
    write_image,
    write_labels,
)
from tests.data import layouts

# From Python 3.12 on, a fork beside the threads of PyTorch and OpenCV gives a warning.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

WRITE = {
    "voc": (layouts.write_voc, "train_aug"),
    "cityscapes": (layouts.write_cityscapes, "val"),
    "folder": (layouts.write_folder, None),
}


@pytest.fixture(params=WRITE)
def dataset(request, tmp_path):
    write, split = WRITE[request.param]
    root = write(tmp_path)
    return DATASETS[request.param](root, split) if split else DATASETS[request.param](root)


def test_it_is_a_sequence(dataset):
    assert len(dataset) == len(dataset.names) == 3
    samples = list(dataset)
    assert [sample.name for sample in samples] == list(dataset.names)
    for index in range(3):
        assert np.array_equal(dataset[index - 3].image, samples[index].image)
        assert dataset.files(index - 3) == dataset.files(index)
    for index in (3, -4):
        with pytest.raises(IndexError):
            dataset[index]


def test_samples_are_pixels_of_one_size(dataset):
    for _, image, labels in dataset:
        assert image.dtype == labels.dtype == np.uint8
        assert (image.shape, labels.shape) == ((*layouts.SIZE, 3), layouts.SIZE)
        assert image.flags.c_contiguous
        assert labels.flags.c_contiguous
        assert ((labels < dataset.num_classes) | (labels == dataset.ignore_index)).all()
        assert len(np.unique(labels)) == 4


def test_a_label_file_read_again_gives_the_labels(dataset):
    for index, (_, image, labels) in enumerate(dataset):
        path = dataset.files(index).labels
        path.write_bytes(dataset.label_file(labels))
        assert np.array_equal(dataset[index].labels, labels)
        assert np.array_equal(dataset[index].image, image)


def test_label_file_names_are_all_different(dataset):
    names = {dataset.label_file_name(index) for index in range(3)}
    assert len(names) == 3
    assert all(name.endswith(".png") and "/" not in name for name in names)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (np.zeros((2, 2)), TypeError, "labels must be uint8, got float64"),
        (np.zeros((1, 2, 2), np.uint8), ValueError, r"must be \[height, width\], got shape \(1, "),
        (np.zeros((0, 2), np.uint8), ValueError, r"got shape \(0, 2\)"),
        (np.full((2, 2), 200, np.uint8), ValueError, "at most [0-9]+, or 255, got 200"),
    ],
)
def test_label_file_refuses_what_is_no_label_map(dataset, labels, error, message):
    with pytest.raises(error, match=message):
        dataset.label_file(labels)


def test_a_process_that_does_not_share_memory_gets_the_dataset(dataset):
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.names == dataset.names
    assert np.array_equal(copy[2].labels, dataset[2].labels)


def test_workers_read_the_same(dataset):
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=2)
    for there, here in zip(loader, dataset, strict=True):
        assert there[0] == here.name
        assert np.array_equal(there[1], here.image)
        assert np.array_equal(there[2], here.labels)


class Threads(torch.utils.data.Dataset):
    """The number of threads of OpenCV, after a sample was read."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        assert self.dataset[index].name
        return cv2.getNumThreads()


def test_opencv_has_one_thread_in_workers_and_all_elsewhere(tmp_path):
    threads = Threads(VOC(layouts.write_voc(tmp_path)))
    before = cv2.getNumThreads()
    cv2.setNumThreads(3)
    try:
        assert list(torch.utils.data.DataLoader(threads, None, num_workers=1)) == [1, 1]
        assert list(torch.utils.data.DataLoader(threads, None)) == [3, 3]
    finally:
        cv2.setNumThreads(before)


def break_folder(root):
    """Returns the beginning of the message for each file of four that is broken."""
    write_image(root / "images" / "four.png", layouts.photograph(4))
    write_labels(root / "labels" / "four.png", layouts.labels(4))
    (root / "images" / "one.png").write_bytes(b"hello")
    (root / "labels" / "one.png").write_bytes(b"hello")
    foreign = np.zeros(layouts.SIZE, np.uint8)
    foreign[2, :3] = 3
    write_labels(root / "labels" / "three.png", foreign)
    write_labels(root / "labels" / "two.png", layouts.labels(1)[:5])
    return {
        "one": ["images/one.png: not an image", "labels/one.png: labels must be a PNG"],
        "three": ["labels/three.png: 3 pixels hold 3, which this dataset of 3 classes"],
        "two": ["labels/two.png is 8x5, but "],
    }


def test_reading_names_the_broken_file(tmp_path):
    faults = break_folder(layouts.write_folder(tmp_path))
    dataset = Folder(tmp_path)
    for index, name in enumerate(dataset.names):
        if name in faults:
            with pytest.raises(DatasetError, match=faults[name][0]):
                dataset[index]
        else:
            assert dataset[index].name == "four"


def test_check_finds_every_fault_and_goes_on(tmp_path):
    faults = break_folder(layouts.write_folder(tmp_path))
    expected = [fault for found in faults.values() for fault in found]
    steps = []
    found = Folder(tmp_path).check(lambda: steps.append(1))
    assert len(steps) == 4
    assert len(found) == len(expected)
    for line, beginning in zip(found, expected, strict=True):
        assert line.startswith(f"{tmp_path}/{beginning}")
        assert "\n" not in line


def test_check_finds_nothing_where_all_is_well(dataset):
    assert dataset.check() == []


def test_check_finds_a_file_that_has_gone(tmp_path):
    dataset = VOC(layouts.write_voc(tmp_path))
    shutil.rmtree(tmp_path / "SegmentationClass")
    assert len(dataset.check()) == len(dataset)
    assert dataset.check()[0] == f"{dataset.files(0).labels}: No such file or directory"


def test_predicted_labels_keep_their_numbers_in_the_file(tmp_path):
    dataset = Folder(layouts.write_folder(tmp_path))
    predicted = layouts.labels(9)
    (tmp_path / "out.png").write_bytes(dataset.label_file(predicted))
    assert np.array_equal(read_labels(tmp_path / "out.png"), predicted)
