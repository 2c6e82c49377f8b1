"""Random scale, crop and flip of a photograph and its labels, as the DeepLab papers train."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ._opencv import opencv
from .dataset import IGNORED, Sample
from .images import Image

# The mean of ImageNet's photographs, to the nearest whole number: red, green, blue.
MEAN_PIXEL = (124, 116, 104)


@dataclass(frozen=True)
class Augmentation:
    r"""Cuts a random window of a photograph, resizes it to the crop, and mirrors it half the time.

    For a crop of c pixels and a random scale s, the window has c / s pixels, rounded. A resized
    pixel i of n lies at

    .. math:: x_i = (i + 1/2) \, w / n - 1/2

    in a window of w pixels. The photograph is interpolated bilinearly there; the label is that of
    the nearest pixel, so labels stay on their pixels. Only the window is resized. Where the window
    is larger than the photograph, the crop is filled at the right and at the bottom with ``fill``
    and ``ignore_index``, before it is mirrored.

    Args:
        crop: height and width of the result. None resizes the whole photograph.
        scale: the smallest and the largest s. A large s magnifies.
        scale_step: None draws any s between the two. A number draws one of the smallest, the
            smallest plus the step, and so on up to the largest.
        flip: whether to mirror half of the results, left to right.
        fill: red, green and blue of pixels outside the photograph.
        ignore_index: their label.

    Raises:
        ValueError: an argument is out of range, or the scales are not a whole number of steps
            apart.

    Source: arXiv:1606.00915, section 4.1.2 (s from 0.5 to 1.5); arXiv:1706.05587, section 4.1 (0.5
    to 2, mirrored).

    Example:
        >>> import numpy as np
        >>> from atrousx.data import Augmentation
        >>> augmentation = Augmentation(crop=(321, 321), scale=(0.5, 1.5), scale_step=0.25)
        >>> image, labels = np.zeros((375, 500, 3), np.uint8), np.zeros((375, 500), np.uint8)
        >>> image, labels = augmentation(image, labels, np.random.default_rng(0))
        >>> image.shape, labels.shape
        ((321, 321, 3), (321, 321))
    """

    crop: tuple[int, int] | None
    scale: tuple[float, float] = (1.0, 1.0)
    scale_step: float | None = None
    flip: bool = True
    fill: tuple[int, int, int] = MEAN_PIXEL
    ignore_index: int = IGNORED

    def __post_init__(self) -> None:
        sides = (1, 1) if self.crop is None else self.crop
        if len(sides) != 2 or not all(isinstance(n, int) and n > 0 for n in sides):
            raise ValueError(f"crop must be two positive whole numbers or None, got {self.crop}")
        low, high = self.scale
        if not 0 < low <= high < math.inf:
            raise ValueError(f"scale must be two positive numbers in order, got {self.scale}")
        if self.scale_step is not None:
            steps = (high - low) / self.scale_step if self.scale_step > 0 else math.nan
            if not math.isclose(steps, round(steps) if math.isfinite(steps) else 0, abs_tol=1e-6):
                raise ValueError(
                    f"scale_step must lead from {low:g} to {high:g} in whole steps, "
                    f"got {self.scale_step:g}"
                )
        for name, values in (("fill", self.fill), ("ignore_index", (self.ignore_index,))):
            if not all(0 <= value <= 255 for value in values):
                raise ValueError(f"{name} must lie in 0..255, got {getattr(self, name)}")

    def __call__(
        self, image: Image, labels: Image, generator: np.random.Generator
    ) -> tuple[Image, Image]:
        """Returns a crop of the photograph, and the labels of its pixels.

        Args:
            image: ``[H, W, 3]`` uint8.
            labels: ``[H, W]`` uint8.
            generator: gives four random numbers, whatever the options are.

        Returns:
            ``[h, w, 3]`` and ``[h, w]`` uint8. Neither shares memory with an argument.

        Raises:
            ValueError: the photograph and the labels differ in size.
        """
        if image.shape[:2] != labels.shape:
            raise ValueError(
                f"labels must have the size of the image, {image.shape[:2]}, got {labels.shape}"
            )
        random = generator.random(4)
        scale = self._scale(random[0])
        axes = [
            _axis(size, None if self.crop is None else self.crop[axis], scale, random[1 + axis])
            for axis, size in enumerate(labels.shape)
        ]
        image, labels = _resized(image, labels, axes)
        if self.crop is not None and labels.shape != tuple(self.crop):
            image = _padded(image, self.crop, self.fill)
            labels = _padded(labels, self.crop, self.ignore_index)
        if self.flip and random[3] < 0.5:
            image, labels = opencv().flip(image, 1), opencv().flip(labels, 1)
        return image, labels

    def _scale(self, random: float) -> float:
        low, high = self.scale
        if self.scale_step is None:
            return low + random * (high - low)
        steps = round((high - low) / self.scale_step)
        return low + self.scale_step * math.floor(random * (steps + 1))


@dataclass(frozen=True)
class _Axis:
    """What becomes of the rows, or of the columns."""

    start: int  # of the window, in the photograph
    size: int  # of the window
    resized: int

    def window(self) -> slice:
        return slice(self.start, self.start + self.size)

    def nearest(self) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        """Returns, for each resized pixel, the pixel of the photograph whose area it lies in."""
        # (i + 1/2) size / resized, rounded down, in whole numbers.
        twice = 2 * np.arange(self.resized) + 1
        return np.asarray(self.start + twice * self.size // (2 * self.resized))


def _axis(size: int, crop: int | None, scale: float, random: float) -> _Axis:
    if crop is None:
        return _Axis(0, size, max(1, round(size * scale)))
    window = max(1, round(crop / scale))
    if window > size:
        return _Axis(0, size, min(crop, max(1, round(size * scale))))
    return _Axis(math.floor(random * (size - window + 1)), window, crop)


def _resized(image: Image, labels: Image, axes: list[_Axis]) -> tuple[Image, Image]:
    rows, columns = axes
    window = image[rows.window(), columns.window()]
    if all(axis.size == axis.resized for axis in axes):
        return window.copy(), labels[rows.window(), columns.window()].copy()
    cv2 = opencv()
    size = (columns.resized, rows.resized)
    resized = cv2.resize(window, size, interpolation=cv2.INTER_LINEAR)
    # Not cv2.INTER_NEAREST, which is half a pixel off, nor INTER_NEAREST_EXACT, which rounds the
    # scale.
    return np.asarray(resized), labels[rows.nearest()].take(columns.nearest(), axis=1)


def _padded(pixels: Image, size: tuple[int, int], value: int | tuple[int, int, int]) -> Image:
    result = np.empty((*size, *pixels.shape[2:]), np.uint8)
    result[...] = value
    result[: pixels.shape[0], : pixels.shape[1]] = pixels
    return result


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """A dataset whose samples are augmented, each in another way in every epoch.

    The random numbers depend on the seed, the epoch and the index alone. So any number of workers
    and processes gives the same pictures, and a run that is continued gives those that it would
    have given.

    Args:
        dataset: gives samples, like ``SegmentationDataset``.
        augmentation: changes photograph and labels.
        seed: a whole number, not negative.

    Raises:
        ValueError: the seed is negative.

    Example:
        >>> import numpy as np
        >>> from atrousx.data import Augmentation, Augmented, Sample
        >>> samples = [Sample("one", np.zeros((9, 9, 3), np.uint8), np.zeros((9, 9), np.uint8))]
        >>> dataset = Augmented(samples, Augmentation(crop=(4, 6)), seed=0)
        >>> image, labels = dataset[3, 0]  # epoch, index
        >>> image.shape, labels.shape
        (torch.Size([3, 4, 6]), torch.Size([4, 6]))
    """

    def __init__(self, dataset: Dataset[Sample], augmentation: Augmentation, *, seed: int) -> None:
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        self.dataset = dataset
        self.augmentation = augmentation
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Returns the photograph ``[3, h, w]`` and the labels ``[h, w]``, both uint8.

        Args:
            key: the index of the sample, or epoch and index. An index alone is in epoch 0, so a
                sampler of indices gives the same crops in every epoch.

        Raises:
            IndexError: there is no sample with this number.
            DatasetError: a file of the sample cannot be used.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        index = operator.index(index)
        _, image, labels = self.dataset[index]
        generator = np.random.default_rng((self.seed, operator.index(epoch), index % len(self)))
        image, labels = self.augmentation(image, labels, generator)
        planes = np.ascontiguousarray(image.transpose(2, 0, 1))
        return torch.from_numpy(planes), torch.from_numpy(labels)
