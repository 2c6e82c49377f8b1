"""The mean IoU near the borders of the truth, as a function of the distance: the trimap curve."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._processes import summed
from ._boxes import distance_to
from ._labels import check_image, check_label_maps, check_num_classes, counted
from .confusion import ConfusionMatrix

WIDTHS = tuple(range(1, 41))


class Trimap:
    r"""Measures labels in bands around the ignored pixels of the truth, such as VOC's borders.

    .. math::
        B_w = \{p : \text{true}_p \ne v, \ \exists q : \text{true}_q = v, \
        \max(|y_p - y_q|, |x_p - x_q|) \le w\}

    where :math:`v` is ``ignore_index``. The band of width :math:`w` has the pixels that a square of
    :math:`(2w + 1)^2` pixels adds to the ignored ones. The ignored pixels themselves do not count.

    Args:
        num_classes: number of classes; labels are 0 to ``num_classes - 1``.
        widths: the bands' widths in pixels, in increasing order.
        ignore_index: the true label of the pixels that the bands surround.

    Attributes:
        counts: ``[widths, num_classes, num_classes]`` int64, true label and predicted label of the
            pixels that are in a band and not in the previous one.

    Raises:
        ValueError: ``num_classes`` is not positive, or ``widths`` is empty, not increasing or not
            positive.

    Source: arXiv:1412.7062, section 5.2 and figure 6, with the widths 1 to 40.

    Example:
        >>> import torch
        >>> from atrousx.metrics import Trimap
        >>> true = torch.tensor([[0, 0, 255, 1, 1]])
        >>> trimap = Trimap(2, widths=(1, 2))
        >>> trimap.update(torch.tensor([[1, 0, 1, 1, 1]]), true).mean_iou()
        tensor([1.0000, 0.5833], dtype=torch.float64)
    """

    def __init__(
        self, num_classes: int, widths: Sequence[int] = WIDTHS, ignore_index: int = 255
    ) -> None:
        check_num_classes(num_classes)
        self.widths = tuple(widths)
        increasing = sorted(set(self.widths)) == list(self.widths)
        if not self.widths or not increasing or self.widths[0] < 1:
            raise ValueError(f"widths must be positive and increasing, got {self.widths}")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.counts = torch.zeros(len(self.widths), num_classes, num_classes, dtype=torch.int64)

    def update(self, predicted: Tensor, true: Tensor) -> Trimap:
        """Counts the labels of one image ``[H, W]``, of any integer dtype; returns this object.

        Raises:
            TypeError, ValueError, RuntimeError: as in ``ConfusionMatrix.update``.
            ValueError: the labels are not ``[H, W]``.
        """
        check_label_maps(predicted, true)
        check_image(true)
        void = true == self.ignore_index
        distance = distance_to(void, self.widths[-1])
        near = (distance <= self.widths[-1]) & ~void
        pair = counted(predicted[near], true[near], self.num_classes)
        widths = torch.tensor(self.widths, device=true.device)
        band = torch.searchsorted(widths, distance[near])
        places = (band * self.num_classes + pair.true) * self.num_classes + pair.predicted
        seen = torch.bincount(places, minlength=self.counts.numel()).view_as(self.counts)
        self.counts = self.counts.to(seen.device) + seen
        return self

    def merge(self, other: Trimap) -> Trimap:
        """Adds the counts of another object, and returns this one.

        Raises:
            ValueError: the other has different classes or widths.
        """
        if (other.num_classes, other.widths) != (self.num_classes, self.widths):
            raise ValueError("other must have the classes and the widths of this object")
        self.counts = self.counts + other.counts.to(self.counts.device)
        return self

    def all_reduce(self) -> Trimap:
        """Adds up the counts of all processes of ``torch.distributed``; each gets the sum.

        All processes must call it. Without an initialised process group nothing changes.
        """
        self.counts = summed(self.counts)
        return self

    def confusion(self, width: int) -> ConfusionMatrix:
        """Returns the confusion matrix of one band.

        Raises:
            ValueError: ``width`` is not one of ``widths``.
        """
        if width not in self.widths:
            raise ValueError(f"width must be one of {self.widths}, got {width}")
        found = ConfusionMatrix(self.num_classes, self.ignore_index)
        found.matrix = self.counts[: self.widths.index(width) + 1].sum(0)
        return found

    def mean_iou(self) -> Tensor:
        """Returns the mean IoU of each band, ``[widths]`` float64.

        It is NaN for a band without pixels. Without ignored pixels in the truth all are NaN.
        """
        means = [self.confusion(width).mean_iou() for width in self.widths]
        return torch.tensor(means, dtype=torch.float64)
