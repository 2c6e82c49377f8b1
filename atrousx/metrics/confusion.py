"""The confusion matrix of true and predicted labels, and the measures computed from it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops._check import check_tensor


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
            predicted one. It is on the device of the last labels. To evaluate in several processes,
            add up their matrices.

    Raises:
        ValueError: ``num_classes`` is not positive.

    Source: the metric of arXiv:1412.7062, section 5. The mean IoU leaves out classes that neither
    occur nor are predicted.

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
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
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
        for name, labels in (("predicted", predicted), ("true", true)):
            check_tensor(name, labels)
            if labels.is_floating_point() or labels.is_complex():
                raise TypeError(f"{name} must be integers, got {str(labels.dtype)[6:]}")
        if predicted.shape != true.shape:
            raise ValueError(
                f"predicted and true must have the same shape, got {tuple(predicted.shape)} and "
                f"{tuple(true.shape)}"
            )
        if predicted.device != true.device:
            raise RuntimeError(
                f"predicted must be on the device of true, {true.device}, got {predicted.device}"
            )
        counts = true != self.ignore_index
        pair = [labels[counts].long() for labels in (true, predicted)]
        for name, labels in zip(("true", "predicted"), pair, strict=True):
            if (
                labels.numel()
                and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes
            ):
                raise ValueError(
                    f"{name} must hold labels from 0 to {self.num_classes - 1}, "
                    f"got {int(labels.min())} to {int(labels.max())}"
                )
        places = pair[0] * self.num_classes + pair[1]
        seen = torch.bincount(places, minlength=self.num_classes**2).view_as(self.matrix)
        self.matrix = self.matrix.to(seen.device) + seen
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

    def accuracy(self) -> float:
        """Returns the share of pixels with the right label; NaN without pixels."""
        return float(self.matrix.diagonal().sum().double() / self.matrix.sum())
