"""The search of the DeepLab papers for the CRF's bilateral kernel: its weight w1, sigma_xy and
sigma_rgb, from a coarse grid to finer ones around the best so far, by mean IoU."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..metrics import ConfusionMatrix
from ..nn.dense_crf import pixel_features
from ..ops import upsample_bilinear2d
from ..ops._mean_field import Term, mean_field
from ..ops._permutohedral_lattice import build_lattice
from ..ops.permutohedral_filter import Normalization, normalizer

IGNORED = 255
Counts = NDArray[np.int64]


class Setting(NamedTuple):
    """What is searched, under the names of DenseCRF's arguments."""

    bilateral_weight: float
    bilateral_sigma_xy: float
    bilateral_sigma_rgb: float


class Grid(NamedTuple):
    """Values of each, increasing; a round tries every combination."""

    bilateral_weight: tuple[float, ...]
    bilateral_sigma_xy: tuple[float, ...]
    bilateral_sigma_rgb: tuple[float, ...]

    def settings(self) -> list[Setting]:
        return [Setting(*values) for values in itertools.product(*self)]

    def around(self, best: Setting) -> Grid:
        """Half the step: each best value and the middles between it and its neighbours.

        At an end of the range it goes half a step beyond, where that is still positive.
        """
        return Grid(*(_closer(values, at) for values, at in zip(self, best, strict=True)))


class FixedOptions(NamedTuple):
    """What is not searched, under the names of DenseCRF's arguments."""

    gaussian_weight: float
    gaussian_sigma_xy: float
    iterations: int
    normalization: Normalization


class Sample(NamedTuple):
    """One photograph of the validation set."""

    image: Tensor  # [3, H, W] uint8
    logits: Tensor  # [L, h, w] float32, h <= H, w <= W
    labels: Tensor  # [H, W] int64, 255 where nobody knows


class Round(NamedTuple):
    grid: Grid
    scores: dict[Setting, float]  # mean IoU of every setting of the grid


def coarse_to_fine(
    grid: Grid, rounds: int, evaluate: Callable[[list[Setting]], dict[Setting, float]]
) -> Iterable[Round]:
    """Yields each round when it is done; ``evaluate`` gets each setting once."""
    known: dict[Setting, float] = {}
    for _ in range(rounds):
        known |= evaluate([s for s in grid.settings() if s not in known])
        done = Round(grid, {s: known[s] for s in grid.settings()})
        yield done
        grid = grid.around(best_setting(known))


def best_setting(scores: dict[Setting, float]) -> Setting:
    """The first of those with the largest mean IoU."""
    return max(scores, key=lambda setting: scores[setting])


def _closer(values: Sequence[float], best: float) -> tuple[float, ...]:
    if len(values) == 1:
        return tuple(values)
    at = values.index(best)
    gaps = [b - a for a, b in itertools.pairwise(values)]
    below = best - gaps[max(at - 1, 0)] / 2
    above = best + gaps[min(at, len(gaps) - 1)] / 2
    return tuple(value for value in (below, best, above) if value > 0)


def confusions(
    sample: Sample,
    settings: Sequence[Setting],
    fixed: FixedOptions,
    step: Callable[[], None] = lambda: None,
) -> dict[Setting | None, Counts]:
    """How often [true label, found label] meet, ``[L, L]``, of each setting; None is without CRF.

    The Gaussian kernel's lattice is built once, the bilateral one's once for all weights. ``step``
    is called after each setting.
    """
    image = sample.image[None].float()
    logits = upsample_bilinear2d(sample.logits[None], size=tuple(sample.labels.shape)).flatten(2)
    found: dict[Setting | None, Counts] = {None: _count(sample.labels, logits)}
    gaussian = []
    if settings and fixed.gaussian_weight:
        sigmas = [fixed.gaussian_sigma_xy] * 2
        gaussian = [_term(image, sigmas, fixed)._replace(weight=fixed.gaussian_weight)]
    by_lattice = sorted(settings, key=lambda s: (s[1:], s[0]))
    for sigmas, group in itertools.groupby(by_lattice, key=lambda s: s[1:]):
        bilateral = _term(image, [sigmas[0]] * 2 + [sigmas[1]] * 3, fixed)
        for setting in group:
            terms = [*gaussian, bilateral._replace(weight=setting.bilateral_weight)]
            q = mean_field(logits, terms, fixed.iterations)
            found[setting] = _count(sample.labels, q)
            step()
    return found


def _term(image: Tensor, sigmas: Sequence[float], fixed: FixedOptions) -> Term:
    """A Gaussian kernel of weight 1: over place, and over colour where there are five sigmas."""
    features = pixel_features(image, coloured=len(sigmas) == 5)
    lattice = build_lattice(features / features.new_tensor(sigmas)[:, None])
    return Term(lattice, normalizer(lattice, fixed.normalization), 1.0, None)


def _count(labels: Tensor, scores: Tensor) -> Counts:
    """``labels`` [H, W] against the largest of ``scores`` [1, L, P]."""
    confusion = ConfusionMatrix(scores.shape[1], ignore_index=IGNORED)
    confusion.update(scores.argmax(1)[0], labels.flatten())
    return np.asarray(confusion.matrix.cpu().numpy(), np.int64)


def mean_iou(counts: Counts) -> float:
    """Intersection over union, a mean over the labels that occur; NaN where none does.

    A label that is only found, never true, counts against those it was mistaken for: so the mean is
    over the same labels for every setting.
    """
    hits = np.diag(counts)
    true, found = counts.sum(1), counts.sum(0)
    occurs = true > 0
    if not occurs.any():
        return math.nan
    return float((hits[occurs] / (true + found - hits)[occurs]).mean())
