"""All measures of one set of predictions."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .boundary import BoundaryIoU
from .confusion import ConfusionMatrix
from .trimap import Trimap


class Measures:
    """The confusion matrix, and on demand the boundary IoU and the trimap curve.

    Args:
        num_classes: number of classes; labels are 0 to ``num_classes - 1``.
        ignore_index: the true label of pixels that do not count.
        boundary: whether to measure the boundary IoU.
        trimap_widths: widths of the trimap's bands; empty for none.

    Attributes:
        confusion: a ``ConfusionMatrix``.
        boundary: a ``BoundaryIoU``, or None.
        trimap: a ``Trimap``, or None.

    Raises:
        ValueError: as in ``ConfusionMatrix`` and ``Trimap``.

    Example:
        >>> import torch
        >>> from atrousx.metrics import Measures
        >>> labels = torch.tensor([[0, 1]])
        >>> Measures(num_classes=2, boundary=True).update(labels, labels).boundary.mean_iou()
        1.0
    """

    def __init__(
        self,
        num_classes: int,
        ignore_index: int = 255,
        boundary: bool = False,
        trimap_widths: Sequence[int] = (),
    ) -> None:
        self.confusion = ConfusionMatrix(num_classes, ignore_index)
        self.boundary = BoundaryIoU(num_classes, ignore_index) if boundary else None
        self.trimap = Trimap(num_classes, trimap_widths, ignore_index) if trimap_widths else None

    def _all(self) -> list[ConfusionMatrix | BoundaryIoU | Trimap]:
        found = (self.confusion, self.boundary, self.trimap)
        return [measure for measure in found if measure is not None]

    def update(self, predicted: Tensor, true: Tensor) -> Measures:
        """Counts the labels of one image ``[H, W]``, of any integer dtype; returns this object.

        Raises:
            TypeError, ValueError, RuntimeError: as in ``ConfusionMatrix.update``.
        """
        for measure in self._all():
            measure.update(predicted, true)
        return self

    def all_reduce(self) -> Measures:
        """Adds up the counts of all processes of ``torch.distributed``; each gets the sum.

        All processes must call it. Without an initialised process group nothing changes.
        """
        for measure in self._all():
            measure.all_reduce()
        return self
