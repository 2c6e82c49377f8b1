"""The confusion matrix, and its old name."""

import pytest
import torch

from atrousx import models
from atrousx.metrics import ConfusionMatrix


def test_by_hand():
    confusion = ConfusionMatrix(3)
    assert torch.tensor(confusion.mean_iou()).isnan()
    true = torch.tensor([[0, 0, 1], [1, 1, 255]], dtype=torch.uint8)
    confusion.update(torch.tensor([[0, 1, 1], [1, 0, 2]]), true)
    assert confusion.matrix.tolist() == [[1, 1, 0], [1, 2, 0], [0, 0, 0]]
    assert confusion.iou()[:2].tolist() == [1 / 3, 2 / 4]
    assert confusion.mean_iou() == pytest.approx((1 / 3 + 1 / 2) / 2)  # class 2 never occurs
    assert confusion.accuracy() == 3 / 5
    confusion.update(true[:0], true[:0])
    assert confusion.update(torch.tensor([2]), torch.tensor([2])).matrix.sum() == 6


@pytest.mark.parametrize(
    ("predicted", "true", "error", "message"),
    [
        ([0.0], [0], TypeError, "predicted must be integers, got float32"),
        ([0], [0, 1], ValueError, "must have the same shape"),
        ([0, 3], [0, 1], ValueError, "predicted must hold labels from 0 to 2, got 0 to 3"),
        ([0, 1], [0, -1], ValueError, "true must hold labels from 0 to 2, got -1 to 0"),
    ],
)
def test_bad_labels_are_named(predicted, true, error, message):
    with pytest.raises(error, match=message):
        ConfusionMatrix(3).update(torch.tensor(predicted), torch.tensor(true))


def test_the_old_name_warns_and_is_the_same():
    with pytest.warns(DeprecationWarning, match=r"is now atrousx\.metrics\.ConfusionMatrix"):
        assert models.ConfusionMatrix is ConfusionMatrix
    with pytest.raises(AttributeError, match="no attribute 'Confusion'"):
        _ = models.Confusion


def test_measures_by_hand():
    confusion = ConfusionMatrix(4)
    assert torch.tensor(confusion.frequency_weighted_iou()).isnan()
    assert torch.tensor(confusion.mean_accuracy()).isnan()
    # Class 2 is predicted but does not occur; class 3 does neither.
    confusion.matrix = torch.tensor([[6, 2, 0, 0], [1, 3, 1, 0], [0] * 4, [0] * 4])
    assert confusion.class_accuracy()[:2].tolist() == [6 / 8, 3 / 5]
    assert confusion.class_accuracy()[2:].isnan().all()
    assert confusion.mean_accuracy() == pytest.approx((6 / 8 + 3 / 5) / 2)
    assert confusion.mean_iou() == pytest.approx((6 / 9 + 3 / 7 + 0) / 3)
    weighted = (8 * 6 / 9 + 5 * 3 / 7) / 13
    assert confusion.frequency_weighted_iou() == pytest.approx(weighted)


def test_matrices_add_up():
    one, other = ConfusionMatrix(2), ConfusionMatrix(2)
    labels = torch.tensor([0, 1, 1])
    one.update(labels, labels)
    other.update(labels, labels).merge(one)
    assert other.matrix.tolist() == [[2, 0], [0, 4]]
    assert one.all_reduce().matrix.tolist() == [[1, 0], [0, 2]]
    with pytest.raises(ValueError, match="other must have 2 classes as this matrix has, got 3"):
        one.merge(ConfusionMatrix(3))
