"""The confusion matrix of true and predicted labels, and the measures computed from it."""

from __future__ import annotations

import torch
from torch import Tensor

from .._processes import summed
from ._labels import check_label_maps, check_num_classes, counted


class ConfusionMatrix:
    r"""Counts pairs of true and predicted labels, image by image, for mean IoU and accuracy.

    .. math::
        M_{tp} = |\{i : \text{true}_i = t, \text{predicted}_i = p\}|, \qquad
        \mathrm{IoU}_c = \frac{M_{cc}}{\sum_p M_{cp} + \sum_t M_{tc} - M_{cc}}

    Args:
        num_classes: number of classes; labels are 0 to ``num_classes - 1``.
        ignore_index: the true label of pixels that do not count, like PASCAL VOC's borders.

    Attributes:
        matrix: ``[num_classes, num_classes]`` int64. The row is the true label, the column the
            predicted one. It is on the device of the last labels.

    Raises:
        ValueError: ``num_classes`` is not positive.

    Source: the metric of arXiv:1412.7062, section 5; the other measures are those of
    arXiv:1411.4038, section 5. The means leave out classes that neither occur nor are predicted.

    Example:
        >>> import torch
        >>> from atrousx.metrics import ConfusionMatrix
        >>> confusion = ConfusionMatrix(2)
        >>> predicted, true = torch.tensor([[0, 1, 1, 1]]), torch.tensor([[0, 0, 1, 255]])
        >>> confusion.update(predicted, true).iou()
        tensor([0.5000, 0.5000], dtype=torch.float64)
        >>> round(confusion.accuracy(), 3)
        0.667
    """

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        check_num_classes(num_classes)
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def update(self, predicted: Tensor, true: Tensor) -> ConfusionMatrix:
        """Counts labels of any shape and integer dtype, and returns this object.

        Raises:
            TypeError: the labels are not integers.
            ValueError: the shapes differ, or a label is outside 0..num_classes-1. A true label may
                also be ``ignore_index``.
            RuntimeError: the labels are on different devices.
        """
        check_label_maps(predicted, true)
        counts = true != self.ignore_index
        pair = counted(predicted[counts], true[counts], self.num_classes)
        places = pair.true * self.num_classes + pair.predicted
        seen = torch.bincount(places, minlength=self.num_classes**2).view_as(self.matrix)
        self.matrix = self.matrix.to(seen.device) + seen
        return self

    def merge(self, other: ConfusionMatrix) -> ConfusionMatrix:
        """Adds the counts of another matrix, and returns this object.

        Raises:
            ValueError: the matrices have different numbers of classes.
        """
        if other.num_classes != self.num_classes:
            raise ValueError(
                f"other must have {self.num_classes} classes as this matrix has, "
                f"got {other.num_classes}"
            )
        self.matrix = self.matrix + other.matrix.to(self.matrix.device)
        return self

    def all_reduce(self) -> ConfusionMatrix:
        """Adds up the matrices of all processes of ``torch.distributed``; each gets the sum.

        All processes must call it. Without an initialised process group nothing changes.
        """
        self.matrix = summed(self.matrix)
        return self

    def iou(self) -> Tensor:
        """Returns the IoU of each class, ``[num_classes]`` float64.

        It is NaN for a class that neither occurs nor is predicted.
        """
        matrix = self.matrix.double()
        both = matrix.diagonal()
        return both / (matrix.sum(0) + matrix.sum(1) - both)

    def mean_iou(self) -> float:
        """Returns the mean IoU of the classes that occur or are predicted; NaN without pixels."""
        return float(self.iou().nanmean())

    def frequency_weighted_iou(self) -> float:
        r"""Returns the IoU weighted by the share of pixels of each class; NaN without pixels.

        .. math:: \sum_c \frac{\sum_p M_{cp}}{\sum_{tp} M_{tp}} \, \mathrm{IoU}_c
        """
        frequency = self.matrix.double().sum(1)
        # A class that never occurs has the weight 0; its IoU may be NaN.
        return float((frequency * self.iou().nan_to_num()).sum() / frequency.sum())

    def class_accuracy(self) -> Tensor:
        r"""Returns the share of each class's pixels that got its label, ``[num_classes]`` float64.

        .. math:: M_{cc} / \textstyle\sum_p M_{cp}

        It is NaN for a class that does not occur.
        """
        matrix = self.matrix.double()
        return matrix.diagonal() / matrix.sum(1)

    def mean_accuracy(self) -> float:
        """Returns the mean of ``class_accuracy`` over the classes that occur; NaN without pixels.

        Unlike the mean IoU it leaves out classes that are only predicted: they have no pixels whose
        accuracy could be measured.
        """
        return float(self.class_accuracy().nanmean())

    def accuracy(self) -> float:
        """Returns the share of pixels with the right label; NaN without pixels."""
        return float(self.matrix.diagonal().sum().double() / self.matrix.sum())
