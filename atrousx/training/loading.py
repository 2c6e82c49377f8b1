"""Reads and augments the images of each step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from .._processes import rank_and_world
from ..data import Augmentation, Augmented, SegmentationDataset
from ..data.readable import Readable
from ..models import Preprocess
from .order import Order
from .recipe import Recipe

# Photographs [n, 3, h, w] and labels [n, h, w], both uint8, of each micro-batch of a step.
StepBatch = tuple[list[Tensor], list[Tensor]]


def step_batches(
    dataset: SegmentationDataset,
    recipe: Recipe,
    start: int,
    *,
    fill: tuple[int, int, int],
    workers: int,
    device: torch.device,
) -> Iterator[StepBatch]:
    """Yields what this process computes in each step, from iteration ``start`` on.

    Raises:
        DatasetError: a file cannot be used.
    """
    rank, world = rank_and_world()
    order = Order(
        length=len(dataset),
        batch_size=recipe.batch_size,
        parts=recipe.accumulate * world,
        own=tuple(range(rank * recipe.accumulate, (rank + 1) * recipe.accumulate)),
        seed=recipe.seed,
        start=start,
        stop=recipe.iterations,
    )
    augmentation = Augmentation(
        recipe.crop,
        recipe.scale,
        recipe.scale_step,
        recipe.flip,
        fill=fill,
        ignore_index=dataset.ignore_index,
    )
    loader = DataLoader(
        Readable(Augmented(dataset, augmentation, seed=recipe.seed)),
        batch_sampler=order,
        collate_fn=_collate,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        # A loader draws a seed. Dropout must not notice how many loaders there were.
        generator=torch.Generator(),
    )
    images: list[Tensor] = []
    targets: list[Tensor] = []
    for batch in loader:
        if isinstance(batch, Exception):
            raise batch
        for part, parts in zip(batch, (images, targets), strict=True):
            parts.append(part.to(device, non_blocking=True))
        if len(images) == recipe.accumulate:
            yield images, targets
            images, targets = [], []


def _collate(items: list[Any]) -> Any:
    """Returns the batch, or the first error."""
    for item in items:
        if isinstance(item, Exception):
            return item
    return default_collate(items)


def mean_pixel(preprocess: Preprocess) -> tuple[int, int, int]:
    """Returns the red, green and blue that the network sees as 0, to the nearest whole number."""
    mean = preprocess.mean.flatten().tolist()
    red, green, blue = reversed(mean) if preprocess.bgr else mean
    return round(red), round(green), round(blue)
