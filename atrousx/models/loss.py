"""The training loss of a DeepLab's logits, over the pixels of all processes and micro-batches."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .._processes import rank_and_world, summed
from ..ops import upsample_cross_entropy
from ..ops._check import check_rank

# A loss of logits [N, C, H, W] and labels [N, OH, OW].
Criterion = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class SegmentationLoss:
    """Adds up the losses of a model's logits.

    Attributes:
        align_corners: how the labels and the logits lie on each other.

    The other attributes are the arguments of ``Segmenter.loss``.
    """

    weight: Tensor | None
    ignore_index: int
    label_smoothing: float
    downsample_labels: bool
    aux_weight: float
    criterion: Criterion | None
    step_targets: Sequence[Tensor] | None
    across_processes: bool
    align_corners: bool

    def __call__(self, logits: Mapping[str, Tensor], target: Tensor) -> Tensor:
        targets = [target] if self.step_targets is None else self.step_targets
        if self.downsample_labels:
            for labels in (target, *targets):
                check_rank("target", labels, 3, "[N, H, W]")
        sizes = {name: scores.shape[-2:] for name, scores in logits.items()}
        divisors: dict[str, Tensor] = {}
        if self.criterion is None and (self.across_processes or self.step_targets is not None):
            divisors = self._divisors(sizes, targets)
        terms = []
        for name, scores in logits.items():
            labels = self._fitted(target, sizes[name])
            if self.criterion is not None:
                term = self.criterion(scores, labels)
            elif divisors:
                term = self._cross_entropy(scores, labels, "sum") / divisors[name]
            else:
                term = self._cross_entropy(scores, labels, "mean")
            terms.append(self.aux_weight * term if name == "aux" else term)
        return torch.stack(terms).sum()

    def _cross_entropy(
        self, scores: Tensor, labels: Tensor, reduction: Literal["mean", "sum"]
    ) -> Tensor:
        return upsample_cross_entropy(
            scores,
            labels,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=reduction,
            label_smoothing=self.label_smoothing,
            align_corners=self.align_corners,
        )

    def _fitted(self, target: Tensor, size: Sequence[int]) -> Tensor:
        return shrunk(target, size, self.align_corners) if self.downsample_labels else target

    def _divisors(
        self, sizes: Mapping[str, Sequence[int]], targets: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """Returns for each of the logits the weight of the step's pixels, per process.

        The sum over all processes is divided by their number, because they average gradients.
        """
        counts = torch.stack(
            [
                torch.stack([self._count(self._fitted(target, size)) for target in targets]).sum()
                for size in sizes.values()
            ]
        )
        if self.across_processes:
            counts = summed(counts) / rank_and_world()[1]
        # A step without any labelled pixel has the loss 0.
        smallest = torch.finfo(counts.dtype).tiny
        return dict(zip(sizes, counts.clamp_min(smallest).unbind(), strict=True))

    def _count(self, labels: Tensor) -> Tensor:
        """Returns the sum of the weights of the pixels that count."""
        counts = labels != self.ignore_index
        if self.weight is None:
            return counts.sum(dtype=torch.float32)
        last = len(self.weight) - 1  # a label outside the classes raises an error in the loss
        weights = self.weight.float()[labels.long().clamp(0, last)]
        return torch.where(counts, weights, 0).sum()


def shrunk(target: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    """Returns the labels at the pixels nearest to the places of logits of a given size."""
    for dim, count in zip((1, 2), size, strict=True):
        extent, places = target.shape[dim], torch.arange(count, device=target.device)
        if align_corners and count > 1:
            places = (2 * places * (extent - 1) + count - 1) // (2 * (count - 1))
        elif not align_corners:
            places = (2 * places + 1) * extent // (2 * count)
        target = target.index_select(dim, places)
    return target


def warn_of_unshared_gradients() -> None:
    warnings.warn(
        "the loss of images was computed outside a wrapper like DistributedDataParallel: the "
        f"{rank_and_world()[1]} processes do not share their gradients. Call the wrapped model, "
        "which returns the loss: parallel(images, target)",
        stacklevel=3,
    )
