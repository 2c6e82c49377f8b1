"""Random crops: labels stay on their pixels, and pictures depend on seed, epoch and index alone."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from atrousx.data import Augmentation, Augmented, DatasetError, Folder, Sample
from tests.data import layouts
from tests.optional import given, settings, st

# From Python 3.12 on, a fork beside the threads of PyTorch and OpenCV gives a warning.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

SIDE = 24
UNIT = 10  # grey levels for each pixel of the way


def ramps(height, width):
    """A photograph whose red and green tell the row and the column of a pixel."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = UNIT * np.arange(height)[:, None]
    image[..., 1] = UNIT * np.arange(width)
    image[..., 2] = 200
    return image


augmentations = st.builds(
    Augmentation,
    crop=st.none() | st.tuples(*[st.integers(1, 40)] * 2),
    scale=st.tuples(st.floats(0.2, 1), st.floats(1, 5)),
    flip=st.booleans(),
    fill=st.just((1, 2, 3)),
)
sizes = st.tuples(*[st.integers(1, SIDE)] * 2)


@given(augmentations, sizes, st.integers(0, 2**31))
@settings(max_examples=400, deadline=None)
def test_labels_stay_on_their_pixels(augmentation, size, seed):
    image = ramps(*size)
    for axis in (0, 1):
        labels = np.ascontiguousarray(image[..., axis] // UNIT)
        found, found_labels = augmentation(image, labels, np.random.default_rng(seed))
        assert found.shape[:2] == found_labels.shape
        assert augmentation.crop in (None, found_labels.shape)
        inside = found_labels != 255
        assert inside.any()
        # Interpolation lies at most half a pixel from the nearest one; the grey levels are rounded.
        away = found[..., axis] / UNIT - found_labels
        assert (abs(away[inside]) <= 0.5 + 1 / UNIT).all()
        # Pixels outside the photograph are those whose label is ignored.
        assert (found[inside][:, 2] == 200).all()
        assert (found[~inside] == (1, 2, 3)).all()


@given(st.tuples(*[st.integers(1, SIDE)] * 2), sizes, st.integers(0, 2**31))
@settings(max_examples=100, deadline=None)
def test_without_scale_pixels_are_copied(crop, size, seed):
    image = np.random.default_rng(seed).integers(0, 200, (*size, 3), dtype=np.uint8)
    augmentation = Augmentation(crop, flip=False, fill=(250, 251, 252))
    found, labels = augmentation(image, image[..., 0].copy(), np.random.default_rng(seed))
    inside = labels != 255
    assert inside.sum() == min(crop[0], size[0]) * min(crop[1], size[1])
    assert np.array_equal(found[..., 0][inside], labels[inside])
    windows = np.lib.stride_tricks.sliding_window_view(
        image, (min(crop[0], size[0]), min(crop[1], size[1]), 3)
    )
    kept = found[: windows.shape[3], : windows.shape[4]]
    assert (windows == kept).all((3, 4, 5)).any()


@pytest.mark.parametrize("scale", [0.5, 0.75, 1.5, 3.0])
def test_labels_are_those_of_the_nearest_pixel(scale):
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    labels = random.integers(0, 256, (40, 60), dtype=np.uint8)
    augmentation = Augmentation(None, (scale, scale), flip=False)
    found, found_labels = augmentation(image, labels, random)
    rows, columns = ((np.arange(int(n * scale)) + 0.5) / scale - 0.5 for n in labels.shape)
    nearest = labels[np.ix_(np.floor(rows + 0.5).astype(int), np.floor(columns + 0.5).astype(int))]
    assert np.array_equal(found_labels, nearest)
    # The photograph at the same places, interpolated by PyTorch.
    planes = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    expected = torch.nn.functional.interpolate(planes, found.shape[:2], mode="bilinear")
    assert np.abs(found - expected[0].permute(1, 2, 0).numpy()).max() <= 1


def drawn(augmentation, size=(30, 30), count=300):
    """Returns what many draws make of the rows and columns of a photograph."""
    random = np.random.default_rng(1)
    image = np.zeros((*size, 3), np.uint8)
    labels = np.tile(np.arange(size[1], dtype=np.uint8), (size[0], 1))
    return [augmentation(image, labels, random)[1] for _ in range(count)]


def test_scales_are_those_of_the_steps():
    widths = [labels.shape[1] for labels in drawn(Augmentation(None, (0.5, 1.5), 0.25))]
    assert {width: widths.count(width) > 30 for width in sorted(set(widths))} == {
        15: True, 22: True, 30: True, 38: True, 45: True
    }  # fmt: skip


def test_scales_without_steps_lie_anywhere_between():
    widths = {labels.shape[1] for labels in drawn(Augmentation(None, (0.5, 1.5)))}
    assert min(widths) >= 15
    assert max(widths) <= 45
    assert len(widths) > 25


def test_crops_and_flips_are_spread():
    first = [tuple(labels[0, [0, -1]]) for labels in drawn(Augmentation((10, 20)))]
    assert set(first) == {(a, a + 19) for a in range(11)} | {(a + 19, a) for a in range(11)}
    assert 100 < sum(a > b for a, b in first) < 200
    assert {
        a < b for a, b in (m[0, [0, -1]] for m in drawn(Augmentation((10, 20), flip=False)))
    } == {True}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": (0, 5)}, r"crop must be two positive whole numbers or None, got \(0, 5\)"),
        ({"crop": (5.0, 5)}, r"crop must be two positive whole numbers or None, got \(5.0, 5\)"),
        ({"crop": (5,)}, r"crop must be two positive whole numbers or None, got \(5,\)"),
        ({"scale": (0, 1)}, r"scale must be two positive numbers in order, got \(0, 1\)"),
        ({"scale": (2, 1)}, "scale must be two positive numbers in order"),
        ({"scale": (1, float("inf"))}, "scale must be two positive numbers in order"),
        ({"scale": (0.5, 2), "scale_step": 0.4}, "from 0.5 to 2 in whole steps, got 0.4"),
        ({"scale": (0.5, 2), "scale_step": 0}, "from 0.5 to 2 in whole steps, got 0"),
        ({"fill": (0, 0, 256)}, r"fill must lie in 0..255, got \(0, 0, 256\)"),
        ({"ignore_index": -1}, r"ignore_index must lie in 0..255, got -1"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**{"crop": (5, 5), **options})


def test_labels_of_another_size():
    with pytest.raises(ValueError, match=r"size of the image, \(3, 3\), got \(2, 3\)"):
        Augmentation(None)(ramps(3, 3), np.zeros((2, 3), np.uint8), np.random.default_rng(0))


@pytest.fixture
def augmented(tmp_path):
    dataset = Folder(layouts.write_folder(tmp_path))
    return Augmented(dataset, Augmentation((5, 7), (0.5, 2)), seed=3)


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_augmented_samples_are_tensors(augmented):
    assert len(augmented) == 3
    image, labels = augmented[1]
    assert (image.dtype, labels.dtype) == (torch.uint8, torch.uint8)
    assert (image.shape, labels.shape) == ((3, 5, 7), (5, 7))
    assert image.is_contiguous()
    with pytest.raises(IndexError):
        augmented[3]


def test_pictures_depend_on_seed_epoch_and_index_alone(augmented):
    assert equal(augmented[2], augmented[0, 2])
    assert equal(augmented[1, -1], augmented[1, 2])
    others = [augmented[epoch, 2] for epoch in range(1, 6)]
    others += [
        Augmented(augmented.dataset, augmented.augmentation, seed=seed)[2] for seed in (0, 1, 2)
    ]
    assert not any(equal(augmented[2], other) for other in others)
    same = Sample("same", ramps(20, 20), np.zeros((20, 20), np.uint8))
    alike = Augmented([same] * 2, augmented.augmentation, seed=3)
    assert not equal(alike[0], alike[1])


def test_any_number_of_workers_gives_the_same_pictures(augmented):
    keys = [(epoch, index) for epoch in range(4) for index in (2, 0, 1)]
    alone, shared = (
        list(DataLoader(augmented, batch_size=2, sampler=keys, num_workers=workers))
        for workers in (0, 2)
    )
    assert len(alone) == 6
    assert all(equal(one, other) for one, other in zip(alone, shared, strict=True))


def test_a_broken_file_is_named_by_a_worker(augmented):
    augmented.dataset.files(1).labels.write_bytes(b"hello")
    # A worker's exception is raised again in the main process, with its type.
    with pytest.raises(DatasetError, match=r"three\.png: labels must be a PNG"):
        list(DataLoader(augmented, num_workers=1))


def test_negative_seeds(augmented):
    with pytest.raises(ValueError, match="seed must not be negative, got -1"):
        Augmented(augmented.dataset, augmented.augmentation, seed=-1)
