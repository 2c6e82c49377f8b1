"""Runs a network on overlapping tiles whose results fade into each other, to save memory."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import cast

import torch
from torch import Tensor

# Tiles start at multiples of this, because the networks' strides divide it, also at the scales 3/4
# and 1/2.
GRID = 32


def starts(extent: int, tile: int, overlap: int) -> list[int]:
    """Returns the first pixels of the tiles along an axis.

    All tiles are ``tile`` pixels long, except the last, which ends with the axis.

    >>> starts(100, 48, 12)
    [0, 32, 64]
    """
    step = (tile - overlap) // GRID * GRID
    count = max(1, -(-(extent - tile) // step) + 1)
    return [step * index for index in range(count)]


def weights(extent: int, begin: int, tile: int, overlap: int, like: Tensor) -> Tensor:
    """Returns a tile's weight at each of its pixels along an axis; all tiles' weights add up to 1.

    Near a border with a neighbour, the outer quarter of the shared pixels has the weight 0: there
    the network sees padding instead of the image. Over the next two quarters the weight rises to 1.
    """
    end = min(begin + tile, extent)
    shared = tile - (tile - overlap) // GRID * GRID
    centres = torch.arange(begin, end, dtype=like.dtype, device=like.device) + 0.5
    result = torch.ones_like(centres)
    if begin > 0:
        result = result * ((centres - begin) / shared * 2 - 0.5).clamp(0, 1)
    if end < extent:
        result = result * ((end - centres) / shared * 2 - 0.5).clamp(0, 1)
    return result


def tiled(network: Callable[[Tensor], Tensor], images: Tensor, tile: int, overlap: int) -> Tensor:
    """Returns ``network(images)``, ``[N, L, H, W]`` from ``[N, 3, H, W]``, computed by tiles."""
    height, width = images.shape[-2:]
    rows, columns = starts(height, tile, overlap), starts(width, tile, overlap)
    if len(rows) == len(columns) == 1:
        return network(images)
    result: Tensor | None = None
    for top in rows:
        for left in columns:
            piece = network(images[..., top : top + tile, left : left + tile])
            if result is None:
                result = piece.new_zeros((*piece.shape[:2], height, width))
            down = weights(height, top, tile, overlap, piece)
            across = weights(width, left, tile, overlap, piece)
            place = result[..., top : top + tile, left : left + tile]
            place.addcmul_(piece, down[:, None] * across)
    assert result is not None
    return result


def check_tile(tile: object, overlap: object) -> tuple[int, int] | None:
    """Returns size and overlap of the tiles, or None for no tiles.

    The default overlap is a quarter of the size.
    """
    for name, value in (("tile", tile), ("overlap", overlap)):
        if value is not None and (not isinstance(value, Integral) or isinstance(value, bool)):
            raise TypeError(f"{name} must be an int or None, got {value!r}")
    if tile is None:
        if overlap is not None:
            raise ValueError(f"overlap={overlap} needs a tile")
        return None
    size = int(cast(int, tile))
    shared = size // 4 if overlap is None else int(cast(int, overlap))
    # Weights add up to 1 only if at most two tiles of a row have a weight at the same pixel.
    step = max(0, size - shared) // GRID * GRID
    if shared < 0 or step == 0 or 3 * step < size:
        raise ValueError(
            f"tile must exceed overlap by {GRID} pixels and by a third of itself, and overlap must "
            f"not be negative, got tile={size} and overlap={shared}"
        )
    return size, shared
