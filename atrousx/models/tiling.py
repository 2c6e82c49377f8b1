"""Images larger than a network's memory: overlapping tiles whose results fade into each other."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import cast

import torch
from torch import Tensor

# Tiles start at multiples of this: the networks' strides divide it, also at 3/4 and half the size.
GRID = 32


def starts(extent: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin along an axis; all reach ``tile`` pixels far, the last to the end.

    >>> starts(100, 48, 12)
    [0, 32, 64]
    """
    step = (tile - overlap) // GRID * GRID
    count = max(1, -(-(extent - tile) // step) + 1)
    return [step * index for index in range(count)]


def weights(extent: int, begin: int, tile: int, overlap: int, like: Tensor) -> Tensor:
    """What a tile counts at each of its pixels along an axis; over all tiles they add up to 1.

    Of what neighbours share, the quarter next to a tile's own border counts nothing: there the
    network sees padding for what is picture. Over the two quarters between it fades.
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
    """``network(images)``, from ``[N, 3, H, W]`` to ``[N, L, H, W]``, tile by tile."""
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
    """The size and overlap of tiles, a quarter of the size by default; None for no tiles."""
    for name, value in (("tile", tile), ("overlap", overlap)):
        if value is not None and (not isinstance(value, Integral) or isinstance(value, bool)):
            raise TypeError(f"{name} must be an int or None, got {value!r}")
    if tile is None:
        if overlap is not None:
            raise ValueError(f"overlap={overlap} needs a tile")
        return None
    size = int(cast(int, tile))
    shared = size // 4 if overlap is None else int(cast(int, overlap))
    # No pixel may lie where three tiles in a row count.
    step = max(0, size - shared) // GRID * GRID
    if shared < 0 or step == 0 or 3 * step < size:
        raise ValueError(
            f"tile must exceed overlap by {GRID} pixels and by a third of itself, and overlap must "
            f"not be negative, got tile={size} and overlap={shared}"
        )
    return size, shared
