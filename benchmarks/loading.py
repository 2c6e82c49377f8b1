"""The training images of a benchmark: files of generated scenes, read and augmented by workers."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from atrousx.data import VOC, Augmentation, Augmented, generate_scenes

Loader = DataLoader[tuple[Tensor, Tensor]]
WORKERS = (1, 2)
# The size of most photographs of PASCAL VOC, and the scales of DeepLab v3's training.
SIZE, SCALES = (375, 500), (0.5, 2.0)


@contextlib.contextmanager
def loaders(
    batch: int, crop: int, quick: bool
) -> Iterator[tuple[int, dict[int, Callable[[], None]]]]:
    """Yields the number of images of an epoch, and for each number of workers how to load one.

    The workers of a loader live on from epoch to epoch, so only the first one starts them. They
    load nothing between two epochs.
    """
    scenes, repeats = (4, 1) if quick else (16, 4)
    with tempfile.TemporaryDirectory() as folder:
        generate_scenes(Path(folder, "scenes"), train=scenes, val=0, size=SIZE)
        files = VOC(Path(folder, "scenes"), "train")
        augmented = Augmented(files, Augmentation((crop, crop), SCALES), seed=0)
        # An index alone has the same crop in each epoch; (epoch, index) has another one.
        keys = [(epoch, index) for epoch in range(repeats) for index in range(scenes)]
        made: list[Loader] = [
            DataLoader(
                augmented,
                batch_size=batch,
                sampler=keys,
                num_workers=workers,
                persistent_workers=True,
                generator=torch.Generator(),
            )
            for workers in WORKERS
        ]

        yield (
            len(keys),
            {
                workers: partial(run_through, loader)
                for workers, loader in zip(WORKERS, made, strict=True)
            },
        )


def run_through(loader: Loader) -> None:
    for _ in loader:
        pass
