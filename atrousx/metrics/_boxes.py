"""Sums over boxes of any size at every pixel, in a time that does not depend on the size."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


class BoxSums:
    r"""Counts the marked pixels of a mask ``[H, W]`` in boxes, from a table of sums.

    .. math:: S_{yx} = \sum_{i < y, j < x} m_{ij}

    The count in a box is four entries of the table, whatever the size of the box (Crow 1984).
    """

    def __init__(self, mask: Tensor) -> None:
        self.height, self.width = mask.shape
        sums = mask.to(torch.int32).cumsum(0, dtype=torch.int32).cumsum(1, dtype=torch.int32)
        self.table = F.pad(sums, (1, 0, 1, 0)).flatten()

    def inside(self, top: Tensor, bottom: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Returns the counts in rows top..bottom-1 and columns left..right-1, clipped to the mask.

        The arguments broadcast to the shape of the result.
        """
        rows = [edge.clamp(0, self.height) * (self.width + 1) for edge in (top, bottom)]
        columns = [edge.clamp(0, self.width) for edge in (left, right)]
        upper, lower = ([self.table[row + column] for column in columns] for row in rows)
        return lower[1] - lower[0] - upper[1] + upper[0]


def pixel_places(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the numbers of the rows [H, 1] and of the columns [1, W]."""
    rows = torch.arange(labels.shape[0], device=labels.device)[:, None]
    return rows, torch.arange(labels.shape[1], device=labels.device)[None]


def distance_to(mask: Tensor, most: int) -> Tensor:
    r"""Returns how far each pixel of ``mask`` ``[H, W]`` is from a marked one, as int64.

    .. math:: D_p = \min_{q : m_q} \max(|y_p - y_q|, |x_p - x_q|)

    Larger distances than ``most`` become a number above it.
    """
    sums, (row, column) = BoxSums(mask), pixel_places(mask)
    # The box of radius r around a pixel is empty exactly if r < D. The largest such r is found bit
    # by bit, for all pixels at once. It starts at -1, the box without pixels.
    largest_empty = torch.full(mask.shape, -1, dtype=torch.int64, device=mask.device)
    for bit in reversed(range((most + 1).bit_length())):
        radius = largest_empty + (1 << bit)
        count = sums.inside(row - radius, row + radius + 1, column - radius, column + radius + 1)
        largest_empty = torch.where(count == 0, radius, largest_empty)
    return largest_empty + 1
