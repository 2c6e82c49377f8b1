"""The DeepLab papers' search for weight w1, sigma_xy and sigma_rgb of the CRF's bilateral kernel.

It starts with a coarse grid. Finer grids around the best setting so far follow. The measure is the
mean IoU.
"""

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
    """The searched parameters, with the names of DenseCRF's arguments."""

    bilateral_weight: float
    bilateral_sigma_xy: float
    bilateral_sigma_rgb: float


class Grid(NamedTuple):
    """The values of each parameter, in increasing order. A round tries every combination."""

    bilateral_weight: tuple[float, ...]
    bilateral_sigma_xy: tuple[float, ...]
    bilateral_sigma_rgb: tuple[float, ...]

    def settings(self) -> list[Setting]:
        return [Setting(*values) for values in itertools.product(*self)]

    def around(self, best: Setting) -> Grid:
        """Returns a grid with half the step: the best values and the middles to their neighbours.

        At an end of the range the grid goes half a step beyond the end, if that is positive.
        """
        return Grid(*(_closer(values, at) for values, at in zip(self, best, strict=True)))


class FixedOptions(NamedTuple):
    """The parameters that are not searched, with the names of DenseCRF's arguments."""

    gaussian_weight: float
    gaussian_sigma_xy: float
    iterations: int
    normalization: Normalization


class Sample(NamedTuple):
    """One photograph of the validation set."""

    image: Tensor  # [3, H, W] uint8
    logits: Tensor  # [L, h, w] float32, h <= H, w <= W
    labels: Tensor  # [H, W] int64, 255 where the label is unknown


class Round(NamedTuple):
    grid: Grid
    scores: dict[Setting, float]  # mean IoU of every setting of the grid


def coarse_to_fine(
    grid: Grid, rounds: int, evaluate: Callable[[list[Setting]], dict[Setting, float]]
) -> Iterable[Round]:
    """Yields each round when it is finished. ``evaluate`` gets each setting only once."""
    known: dict[Setting, float] = {}
    for _ in range(rounds):
        known |= evaluate([s for s in grid.settings() if s not in known])
        done = Round(grid, {s: known[s] for s in grid.settings()})
        yield done
        grid = grid.around(best_setting(known))


def best_setting(scores: dict[Setting, float]) -> Setting:
    """Returns the setting with the largest mean IoU; the first one if several have it."""
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
    """Returns a confusion matrix ``[true label, found label]`` for each setting.

    The key None is the result without the CRF. The lattice of the Gaussian kernel is built once.
    The lattice of the bilateral kernel is built once for all weights. ``step`` is called after each
    setting.
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
    """Returns a Gaussian kernel of weight 1 over the position; with five sigmas also the colour."""
    features = pixel_features(image, coloured=len(sigmas) == 5)
    lattice = build_lattice(features / features.new_tensor(sigmas)[:, None])
    return Term(lattice, normalizer(lattice, fixed.normalization), 1.0, None)


def _count(labels: Tensor, scores: Tensor) -> Counts:
    """Returns the confusion matrix of ``labels`` [H, W] and the largest ``scores`` [1, L, P]."""
    confusion = ConfusionMatrix(scores.shape[1], ignore_index=IGNORED)
    confusion.update(scores.argmax(1)[0], labels.flatten())
    return np.asarray(confusion.matrix.cpu().numpy(), np.int64)


def mean_iou(counts: Counts) -> float:
    """Returns the mean intersection over union of the true labels that occur; NaN if none occurs.

    A label that is found but never true has no term of its own. Its pixels count as errors of the
    true labels. So the mean is over the same labels for every setting.
    """
    hits = np.diag(counts)
    true, found = counts.sum(1), counts.sum(0)
    occurs = true > 0
    if not occurs.any():
        return math.nan
    return float((hits[occurs] / (true + found - hits)[occurs]).mean())
