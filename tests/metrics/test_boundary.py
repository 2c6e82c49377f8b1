"""The boundary IoU."""

import numpy as np
import pytest
import torch

from atrousx.metrics import BoundaryIoU
from atrousx.metrics.boundary import near_contours
from tests.metrics.pictures import CLASSES, blocks
from tests.optional import given, settings, st
from tests.reference import segmentation_measures as reference


def square(top: int) -> torch.Tensor:
    labels = torch.zeros(9, 9, dtype=torch.int64)
    labels[top : top + 5, 2:7] = 1
    return labels


def test_a_square_moved_by_one_pixel_by_hand():
    boundary = BoundaryIoU(3).update(square(3), square(2))
    # The rings of 16 pixels share four pixels on the left and four on the right. Of the background,
    # the image's border (32 pixels) counts, and a ring of 24 around each square. The rings share 6
    # pixels on both sides; one ring has 7 pixels on the border.
    assert boundary.intersections.tolist() == [32 + 12, 8, 0]
    assert boundary.unions.tolist() == [32 + 24 + 24 - 7 - 12, 16 + 16 - 8, 0]
    assert boundary.mean_iou() == pytest.approx((44 / 61 + 8 / 24) / 2)  # class 2 never occurs


def test_ignored_pixels_do_not_count_and_are_no_class():
    true = torch.tensor([[0, 0, 0, 0, 0, 255, 1, 1, 1, 1, 1]])
    boundary = BoundaryIoU(2, ratio=1e-9)
    # One row: every pixel is next to the border of the image.
    assert boundary.update(true % 2, true).unions.tolist() == [5, 5]
    tall = true.expand(11, -1)
    near = near_contours(tall, 1)[5]
    assert near.tolist() == [1, 0, 0, 0, 1, 1, 1, 0, 0, 0, 1]


@pytest.mark.parametrize(("size", "distance"), [((9, 9), 1), ((375, 500), 12), ((30, 40), 1)])
def test_the_distance_is_a_share_of_the_diagonal(size, distance):
    true = torch.zeros(size, dtype=torch.uint8)
    height, width = (extent - 2 * distance for extent in size)
    near = size[0] * size[1] - height * width
    assert BoundaryIoU(1).update(true, true).unions.tolist() == [near]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 30), st.sampled_from([2, 8]))
def test_equals_the_definition_by_erosion(seed, height, width, percent):
    random = np.random.default_rng(seed)
    true, predicted = blocks(random, height, width), blocks(random, height, width)
    predicted = predicted.where(predicted != 255, 0)
    found = BoundaryIoU(CLASSES, ratio=percent / 100).update(predicted, true)
    expected = reference.boundary_counts(predicted.numpy(), true.numpy(), CLASSES, percent / 100)
    assert (found.intersections.tolist(), found.unions.tolist()) == expected


def test_objects_add_up():
    one, other = BoundaryIoU(2).update(square(3), square(2)), BoundaryIoU(2)
    other.update(square(2), square(2)).merge(one)
    both = BoundaryIoU(2).update(square(3), square(2)).update(square(2), square(2))
    assert torch.equal(other.intersections, both.intersections)
    assert torch.equal(other.unions, both.unions)


def test_bad_calls_are_named():
    with pytest.raises(ValueError, match="ratio must be positive, got 0"):
        BoundaryIoU(2, ratio=0)
    with pytest.raises(ValueError, match="num_classes must be at least 1"):
        BoundaryIoU(0)
    with pytest.raises(ValueError, match="the classes and the ratio"):
        BoundaryIoU(2).merge(BoundaryIoU(2, ratio=0.1))
    with pytest.raises(ValueError, match=r"\[H, W\], of one image"):
        BoundaryIoU(2).update(square(2)[None], square(2)[None])
    with pytest.raises(ValueError, match="predicted must hold labels from 0 to 0"):
        BoundaryIoU(1).update(square(2), 0 * square(2))
