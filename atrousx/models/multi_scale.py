"""Multi-scale inference: fuses results of a photograph at several scales, mirrored, in tiles."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from ..ops import upsample_softmax_add_
from ..ops._check import check_rank, check_tensor
from .tiling import check_tile, tiled


class Prediction(NamedTuple):
    """The result of ``predict``.

    Attributes:
        labels: ``[N, H, W]`` int64, the most likely class of every pixel, before the CRF.
        refined: ``[N, H, W]`` int64, the most likely class after the CRF; None without a CRF.
        probabilities: ``[N, L, H, W]``, after the CRF if there is one.

    Example:
        >>> import torch
        >>> from atrousx.models import Prediction
        >>> Prediction(torch.zeros(1, 2, 2), None, torch.ones(1, 1, 2, 2)).labels.shape
        torch.Size([1, 2, 2])
    """

    labels: Tensor
    refined: Tensor | None
    probabilities: Tensor


class Network(Protocol):
    """The parts of a model that multi-scale inference uses."""

    fusion: ClassVar[Literal["mean", "max"]]  # mean of softmax probabilities, or maximum of logits

    @property
    def preprocess(self) -> Callable[[Tensor], Tensor]: ...

    @property
    def resample(self) -> Callable[..., Tensor]: ...

    def __call__(self, *images: Tensor) -> Mapping[str, Tensor]: ...


class MultiScale(NamedTuple):
    """The views of a photograph that a prediction fuses.

    Attributes:
        scales: sizes of the views, relative to the photograph.
        flip: whether each scale is also used mirrored.
        tiles: size and overlap of the tiles; None if each view is one piece.
    """

    scales: Sequence[float]
    flip: bool
    tiles: tuple[int, int] | None

    @classmethod
    def checked(
        cls, scales: Sequence[float], flip: bool, tile: int | None, overlap: int | None
    ) -> MultiScale:
        if not scales or not all(scale > 0 and math.isfinite(scale) for scale in scales):
            raise ValueError(f"scales must be positive numbers, at least one, got {scales!r}")
        return cls(scales, flip, check_tile(tile, overlap))

    def probabilities(self, model: Network, photograph: Tensor) -> Tensor:
        """Returns the probabilities [N, L, H, W] of a photograph [N, 3, H, W], over all views."""
        size, fused = photograph.shape[-2:], None
        sides = (False, True) if self.flip else (False,)
        views = [(scale, mirrored) for scale in self.scales for mirrored in sides]
        for scale, mirrored in views:
            scores = self._scores(model, photograph, scale, mirrored)
            if model.fusion == "mean":
                if fused is None:
                    dtype = torch.promote_types(scores.dtype, torch.float32)
                    fused = scores.new_zeros((*scores.shape[:2], *size), dtype=dtype)
                upsample_softmax_add_(fused, scores, 1 / len(views), flip=mirrored)
                continue
            scores = model.resample(scores, size) if scale != 1 else scores
            scores = scores.flip(-1) if mirrored else scores
            fused = scores if fused is None else torch.maximum(fused, scores)
        assert fused is not None
        return fused if model.fusion == "mean" else fused.softmax(1)

    def _scores(self, model: Network, photograph: Tensor, scale: float, mirrored: bool) -> Tensor:
        """Returns the network's logits for one view: a scale of the photograph, or its mirror."""

        def network(images: Tensor) -> Tensor:
            return model(images)["out"]

        images = model.preprocess(photograph)
        if scale != 1:
            size = [max(1, round(scale * extent)) for extent in photograph.shape[-2:]]
            images = model.resample(images, size)
        seen = images.flip(-1) if mirrored else images
        return network(seen) if self.tiles is None else tiled(network, seen, *self.tiles)


def checked_photograph(image: Tensor) -> Tensor:
    """Returns the image as a floating tensor [N, 3, H, W], or raises an error."""
    check_tensor("image", image)
    if image.dim() == 3:
        image = image[None]
    check_rank("image", image, 4, "[N, 3, H, W] or [3, H, W]")
    if image.shape[1] != 3 or 0 in image.shape[2:]:
        raise ValueError(f"image must be [N, 3, H, W] or [3, H, W], got {tuple(image.shape)}")
    return image if image.is_floating_point() else image.to(torch.float32)
