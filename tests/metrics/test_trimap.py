"""The trimap curve."""

import numpy as np
import pytest
import torch

from atrousx.metrics import Trimap
from atrousx.metrics._boxes import distance_to
from tests.metrics.pictures import CLASSES, blocks
from tests.optional import given, settings, st
from tests.reference import segmentation_measures as reference


def test_by_hand():
    true = torch.tensor([[0, 0, 0, 255, 1, 1]], dtype=torch.uint8)
    predicted = torch.tensor([[1, 0, 0, 3, 0, 1]])
    trimap = Trimap(2, widths=(1, 2, 5)).update(predicted, true)
    # Width 1: one pixel on each side. Width 2: two. Width 5: all but the ignored one.
    assert trimap.confusion(1).matrix.tolist() == [[1, 0], [1, 0]]
    assert trimap.confusion(2).matrix.tolist() == [[2, 0], [1, 1]]
    assert trimap.confusion(5).matrix.tolist() == [[2, 1], [1, 1]]
    expected = [(1 / 2 + 0) / 2, (2 / 3 + 1 / 2) / 2, (2 / 4 + 1 / 3) / 2]
    assert trimap.mean_iou().tolist() == pytest.approx(expected)


def test_distance_by_hand():
    mask = torch.zeros(4, 6, dtype=torch.bool)
    mask[1, 1] = True
    expected = [[1, 1, 1, 2, 3, 4], [1, 0, 1, 2, 3, 4], [1, 1, 1, 2, 3, 4], [2, 2, 2, 2, 3, 4]]
    assert distance_to(mask, 4).tolist() == expected
    for most in (1, 2, 3):
        assert distance_to(mask, most).clamp(max=most + 1).tolist() == [
            [min(distance, most + 1) for distance in row] for row in expected
        ]
    assert distance_to(torch.zeros(3, 5, dtype=torch.bool), 40).min() > 40


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 30), st.integers(1, 6))
def test_equals_the_definition_by_dilation(seed, height, width, side):
    random = np.random.default_rng(seed)
    true, predicted = blocks(random, height, width, side), blocks(random, height, width, side)
    predicted = predicted.where(predicted != 255, 0)
    widths = (1, 2, 3, 7, 40)
    found = Trimap(CLASSES, widths).update(predicted, true).mean_iou()
    expected = [
        reference.trimap_mean_iou(predicted.numpy(), true.numpy(), width, CLASSES)
        for width in widths
    ]
    assert found.tolist() == pytest.approx(expected, nan_ok=True)


def test_images_add_up():
    random = np.random.default_rng(1)
    pairs = [(blocks(random, 20, 30) % 4, blocks(random, 20, 30)) for _ in range(3)]
    whole, one, other = (Trimap(CLASSES, (1, 4)) for _ in range(3))
    for place, pair in enumerate(pairs):
        whole.update(*pair)
        (one if place else other).update(*pair)
    assert torch.equal(one.merge(other).counts, whole.counts)
    assert whole.counts.sum() > 0


def test_without_ignored_pixels_every_band_is_empty():
    labels = torch.zeros(3, 4, dtype=torch.uint8)
    assert Trimap(2).update(labels, labels).mean_iou().isnan().all()


@pytest.mark.parametrize(
    ("widths", "message"),
    [((), "got"), ((0, 1), "widths must be positive"), ((2, 1), "increasing"), ((1, 1), "got")],
)
def test_bad_widths_are_named(widths, message):
    with pytest.raises(ValueError, match=message):
        Trimap(2, widths)


def test_bad_calls_are_named():
    trimap, labels = Trimap(2), torch.zeros(1, 2, 2, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"\[H, W\], of one image, got \(1, 2, 2\)"):
        trimap.update(labels, labels)
    with pytest.raises(ValueError, match="width must be one of"):
        trimap.confusion(41)
    with pytest.raises(ValueError, match="the classes and the widths"):
        trimap.merge(Trimap(2, (1, 2)))
    border = torch.tensor([[255, 2]])
    with pytest.raises(ValueError, match="true must hold labels from 0 to 1, got 2 to 2"):
        trimap.update(torch.zeros_like(border), border)
