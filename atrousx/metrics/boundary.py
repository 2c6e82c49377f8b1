"""Boundary IoU: how well the contours of the classes agree with the true contours."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .._processes import summed
from ._boxes import BoxSums, pixel_places
from ._labels import check_image, check_label_maps, check_num_classes, counted


class BoundaryIoU:
    r"""Measures the IoU of the pixels near the contours of each class.

    .. math::
        \mathrm{BIoU}_c = \frac{\sum_n |(G_c)_d \cap (P_c)_d|}{\sum_n |(G_c)_d \cup (P_c)_d|}
        , \qquad X_d = \{p \in X : \exists q \notin X, \ \max(|y_p - y_q|, |x_p - x_q|) \le d\}

    :math:`G_c` are the pixels of class :math:`c` in the truth of an image, and :math:`P_c` those
    with the predicted label :math:`c`. Intersections and unions are added up over the images
    :math:`n`. The distance :math:`d` is a share of the image's diagonal, rounded, and at least one
    pixel. Pixels outside the image belong to no class, so a class that touches the image's border
    has a contour there.

    Pixels whose true label is ``ignore_index`` do not count, neither in :math:`G_d` nor in
    :math:`P_d`. They belong to no class of the truth, so the true contour of an object is where the
    ignored pixels begin.

    Args:
        num_classes: number of classes; labels are 0 to ``num_classes - 1``.
        ignore_index: the true label of pixels that do not count.
        ratio: the distance :math:`d` relative to the image's diagonal.

    Attributes:
        intersections: ``[num_classes]`` int64, pixels near both contours.
        unions: ``[num_classes]`` int64, pixels near one contour or both.

    Raises:
        ValueError: ``num_classes`` or ``ratio`` is not positive.

    Source: arXiv:2103.16562, section 4, for one mask; squares instead of discs, and the least
    distance of one pixel, are those of the authors' code. Their ratio is 0.02.

    Example:
        >>> import torch
        >>> from atrousx.metrics import BoundaryIoU
        >>> true = torch.zeros(9, 9, dtype=torch.uint8)
        >>> true[2:7, 2:7] = 1
        >>> boundary = BoundaryIoU(2).update(true.roll(1, 0), true)
        >>> boundary.iou()
        tensor([0.7213, 0.3333], dtype=torch.float64)
    """

    def __init__(self, num_classes: int, ignore_index: int = 255, ratio: float = 0.02) -> None:
        check_num_classes(num_classes)
        if not 0 < ratio < math.inf:
            raise ValueError(f"ratio must be positive, got {ratio}")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.ratio = ratio
        self.intersections = torch.zeros(num_classes, dtype=torch.int64)
        self.unions = torch.zeros(num_classes, dtype=torch.int64)

    def update(self, predicted: Tensor, true: Tensor) -> BoundaryIoU:
        """Counts the labels of one image ``[H, W]``, of any integer dtype; returns this object.

        Raises:
            TypeError, ValueError, RuntimeError: as in ``ConfusionMatrix.update``.
            ValueError: the labels are not ``[H, W]``.
        """
        check_label_maps(predicted, true)
        check_image(true)
        distance = max(1, round(self.ratio * math.hypot(*true.shape)))
        counts = true != self.ignore_index
        near_predicted, near_true = (
            near_contours(labels, distance)[counts] for labels in (predicted, true)
        )
        pair = counted(predicted[counts], true[counts], self.num_classes)
        both = near_predicted & near_true & (pair.predicted == pair.true)
        in_predicted, in_true, in_both = (
            torch.bincount(labels, minlength=self.num_classes)
            for labels in (pair.predicted[near_predicted], pair.true[near_true], pair.true[both])
        )
        self.intersections = self.intersections.to(in_both.device) + in_both
        self.unions = self.unions.to(in_both.device) + in_predicted + in_true - in_both
        return self

    def merge(self, other: BoundaryIoU) -> BoundaryIoU:
        """Adds the counts of another object, and returns this one.

        Raises:
            ValueError: the other has different classes or another ratio.
        """
        if (other.num_classes, other.ratio) != (self.num_classes, self.ratio):
            raise ValueError("other must have the classes and the ratio of this object")
        self.intersections = self.intersections + other.intersections.to(self.intersections.device)
        self.unions = self.unions + other.unions.to(self.unions.device)
        return self

    def all_reduce(self) -> BoundaryIoU:
        """Adds up the counts of all processes of ``torch.distributed``; each gets the sum.

        All processes must call it. Without an initialised process group nothing changes.
        """
        self.intersections, self.unions = summed(torch.stack([self.intersections, self.unions]))
        return self

    def iou(self) -> Tensor:
        """Returns the boundary IoU of each class, ``[num_classes]`` float64.

        It is NaN for a class that neither occurs nor is predicted.
        """
        return self.intersections.double() / self.unions

    def mean_iou(self) -> float:
        """Returns the mean over the classes that occur or are predicted; NaN without pixels."""
        return float(self.iou().nanmean())


def near_contours(labels: Tensor, distance: int) -> Tensor:
    """Returns which pixels of ``labels`` ``[H, W]`` are near another label or the image's border.

    A pixel is far from contours exactly if no two neighbours within its box differ.
    """
    # A frame of a label that does not occur: outside the image is another label.
    framed = F.pad(labels.long(), (1, 1, 1, 1), value=-1)
    across = BoxSums(framed[:, 1:] != framed[:, :-1])  # [H + 2, W + 1]
    down = BoxSums(framed[1:] != framed[:-1])  # [H + 1, W + 2]
    row, column = (place + 1 for place in pixel_places(labels))
    top, left = row - distance, column - distance
    bottom, right = row + distance, column + distance
    # Boxes are clipped. They still hold the frame's edge if they reach beyond the image.
    differ = across.inside(top, bottom + 1, left, right)
    return (differ + down.inside(top, bottom, left, right + 1)) > 0
