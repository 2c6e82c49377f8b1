"""The order of the samples, which depends on the seed alone, so that any run can be continued."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

Key = tuple[int, int]  # epoch and index of a sample


@dataclass(frozen=True)
class Order:
    """Yields the keys of each micro-batch of one process, from one iteration to another.

    All samples of an epoch are shuffled. The epochs follow each other without a gap, so all batches
    have the same size. A step takes the next ``batch_size`` samples; each process takes a part of
    each. So the images of a step do not depend on the number of processes and micro-batches.

    Attributes:
        length: number of samples of the data set.
        batch_size: samples of a step, of all processes and micro-batches.
        parts: micro-batches of a step, of all processes.
        own: the numbers of those that this process computes.
        seed: seed of the shuffling.
        start: the first iteration.
        stop: the iteration after the last one.
    """

    length: int
    batch_size: int
    parts: int
    own: tuple[int, ...]
    seed: int
    start: int
    stop: int

    def __len__(self) -> int:
        return len(self.own) * (self.stop - self.start)

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, shuffled = -1, np.empty(0, np.int64)
        size = self.batch_size // self.parts
        for iteration in range(self.start, self.stop):
            for part in self.own:
                first = iteration * self.batch_size + part * size
                keys = []
                for place in range(first, first + size):
                    if place // self.length != epoch:
                        epoch = place // self.length
                        shuffled = np.random.default_rng((self.seed, epoch)).permutation(
                            self.length
                        )
                    keys.append((epoch, int(shuffled[place % self.length])))
                yield keys
