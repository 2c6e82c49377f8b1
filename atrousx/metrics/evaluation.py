"""Evaluates a model on a dataset, in one process or in several."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from .._processes import rank_and_world
from ..data.readable import Readable
from ..models.segmenter import Segmenter, evaluating
from ..nn import DenseCRF
from ..ops import upsample_argmax
from .measures import Measures


class LabelledImage(Protocol):
    """What evaluation reads of a sample."""

    @property
    def name(self) -> str: ...
    @property
    def image(self) -> NDArray[np.uint8]: ...  # [H, W, 3], red, green, blue
    @property
    def labels(self) -> NDArray[np.uint8]: ...  # [H, W]


class LabelledImages(Protocol):
    """What evaluation needs of a dataset; ``atrousx.data.SegmentationDataset`` has it."""

    @property
    def num_classes(self) -> int: ...
    @property
    def ignore_index(self) -> int: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Any: ...  # a LabelledImage


class Labels(NamedTuple):
    """The labels of one image.

    Attributes:
        labels: ``[H, W]`` int64, before the CRF.
        refined: ``[H, W]`` int64, after the CRF; None without a CRF.

    Example:
        >>> import torch
        >>> from atrousx.metrics import Labels
        >>> Labels(torch.zeros(2, 3), None).final.shape
        torch.Size([2, 3])
    """

    labels: Tensor
    refined: Tensor | None

    @property
    def final(self) -> Tensor:
        """The labels after the CRF, or those before it where there is no CRF."""
        return self.labels if self.refined is None else self.refined


class Evaluation(NamedTuple):
    """How well a model labels a dataset.

    Attributes:
        labels: the measures before the CRF.
        refined: the measures after the CRF; None without a CRF.
        images: the number of images.

    Example:
        >>> from atrousx.metrics import Evaluation, Measures
        >>> Evaluation(Measures(num_classes=2), None, images=0).mean_iou()
        nan
    """

    labels: Measures
    refined: Measures | None
    images: int

    @property
    def final(self) -> Measures:
        """The measures after the CRF, or those before it where there is no CRF."""
        return self.labels if self.refined is None else self.refined

    def mean_iou(self) -> float:
        """Returns the mean IoU, after the CRF if there is one."""
        return self.final.confusion.mean_iou()


@torch.inference_mode()
def evaluate(
    model: Segmenter,
    dataset: LabelledImages,
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    crf: DenseCRF | bool | None = None,
    tile: int | None = None,
    boundary: bool = False,
    trimap_widths: Sequence[int] = (),
    workers: int = 0,
    progress: Callable[[], None] | None = None,
    on_result: Callable[[int, Any, Labels], None] | None = None,
) -> Evaluation:
    """Labels every image of a dataset and compares the labels with the truth.

    Images may differ in size; the model sees one at a time. With one scale and without mirror
    images, CRF and tiles, no logits at the images' size are stored.

    In several processes, with an initialised group of ``torch.distributed``, each process takes
    every n-th image and all return the sum. Each image counts once. All processes must call this
    function with the same dataset and options.

    Args:
        model: a DeepLab on its device. It is evaluated in evaluation mode and has its own mode
            afterwards.
        dataset: has ``num_classes``, ``ignore_index`` and a length. An item has ``name``, ``image``
            ``[H, W, 3]`` uint8 RGB and ``labels`` ``[H, W]`` uint8.
        scales: sizes at which the model sees an image, as in ``Segmenter.predict``.
        flip: whether the model also sees the mirror image of each scale.
        crf: a CRF that refines the labels. True is the model's own. False and None are no CRF.
        tile: the most pixels in height and width that the model sees at a time.
        boundary: whether to measure the boundary IoU.
        trimap_widths: widths in pixels of the bands around the truth's ignored pixels in which to
            measure the mean IoU; empty for none.
        workers: processes that read images while the model computes; 0 reads in this process.
        progress: called after each image of this process.
        on_result: called after each image of this process with its index in the dataset, its item
            and its labels.

    Returns:
        The measures before and after the CRF.

    Raises:
        TypeError: ``model`` is not a DeepLab of this package.
        ValueError: the model has other classes than the dataset; an item's labels do not fit its
            image or hold an unknown label; ``workers`` is negative; or as in ``Segmenter.predict``.

    Source: the measures of arXiv:1412.7062 section 5 and arXiv:2103.16562.

    Example:
        >>> from collections import namedtuple
        >>> import numpy as np
        >>> import atrousx
        >>> Item = namedtuple("Item", "name image labels")
        >>> class Squares(list):
        ...     num_classes, ignore_index = 3, 255
        >>> black, truth = np.zeros((33, 41, 3), np.uint8), np.zeros((33, 41), np.uint8)
        >>> model = atrousx.models.deeplab_v3(num_classes=3)
        >>> found = atrousx.metrics.evaluate(model, Squares([Item("black", black, truth)]))
        >>> 0 <= found.mean_iou() <= 1
        True
    """
    if not isinstance(model, Segmenter):
        raise TypeError(
            "model must be a DeepLab of atrousx (the attribute module of a "
            f"DistributedDataParallel), got {type(model).__name__}"
        )
    network = _Network(model, dataset.num_classes, scales=scales, flip=flip, crf=crf, tile=tile)
    found = [
        Measures(dataset.num_classes, dataset.ignore_index, boundary, trimap_widths)
        for _ in range(1 if network.crf is None else 2)
    ]
    with evaluating(model):
        for index, sample in _own_samples(dataset, workers):
            photograph, truth = _tensors(sample, model.preprocess.mean.device)
            labels = network.labels(photograph)
            _update(found, labels, truth, sample.name)
            if on_result is not None:
                on_result(index, sample, labels)
            if progress is not None:
                progress()
    before, *after = (measures.all_reduce() for measures in found)
    return Evaluation(before, after[0] if after else None, len(dataset))


class _Network:
    """A model, how it looks at an image, and the number of classes that it must have."""

    def __init__(
        self,
        model: Segmenter,
        num_classes: int,
        *,
        scales: Sequence[float],
        flip: bool,
        crf: DenseCRF | bool | None,
        tile: int | None,
    ) -> None:
        self.model, self.num_classes = model, num_classes
        self.scales, self.flip, self.tile = scales, flip, tile
        self.crf = (model.crf if crf else None) if isinstance(crf, bool) else crf
        self.is_plain = tuple(scales) == (1.0,) and not flip and self.crf is None and tile is None

    def labels(self, photograph: Tensor) -> Labels:
        """Returns the labels of a photograph [1, 3, H, W]."""
        if self.is_plain:
            # What Segmenter.labels does. The labels alone do not tell the number of classes.
            coarse = self.model.coarse_logits(self.model.preprocess(photograph))["out"]
            self._check_classes(coarse)
            size, corners = photograph.shape[-2:], self.model.align_corners
            return Labels(upsample_argmax(coarse, size, align_corners=corners)[0], None)
        before, after, probabilities = self.model.predict(
            photograph, self.scales, flip=self.flip, crf=self.crf, tile=self.tile
        )
        self._check_classes(probabilities)
        return Labels(before[0], None if after is None else after[0])

    def _check_classes(self, scores: Tensor) -> None:
        if scores.shape[1] != self.num_classes:
            raise ValueError(
                f"model has {scores.shape[1]} classes, but the dataset has {self.num_classes}"
            )


def _own_samples(dataset: LabelledImages, workers: int) -> Iterator[tuple[int, Any]]:
    """Yields index and item of every image that this process evaluates."""
    rank, world = rank_and_world()
    own = range(rank, len(dataset), world)
    loader = DataLoader(
        Readable(dataset),
        batch_size=None,
        sampler=own,
        num_workers=workers,
        collate_fn=_as_it_is,
        # A loader draws a seed. The generator of training must not notice an evaluation.
        generator=torch.Generator(),
    )
    for index, sample in zip(own, loader, strict=True):
        if isinstance(sample, Exception):
            raise sample
        yield index, sample


def _as_it_is(item: Any) -> Any:
    return item


def _tensors(sample: LabelledImage, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns the photograph [1, 3, H, W] and the true labels [H, W]."""
    if sample.labels.shape != sample.image.shape[:2]:
        raise ValueError(
            f"{sample.name}: the labels are {list(sample.labels.shape)}, "
            f"but the image is {list(sample.image.shape)}"
        )
    image = torch.from_numpy(np.ascontiguousarray(sample.image)).to(device)
    labels = torch.from_numpy(np.ascontiguousarray(sample.labels)).to(device)
    return image.permute(2, 0, 1)[None], labels


def _update(found: Sequence[Measures], labels: Labels, truth: Tensor, name: str) -> None:
    try:
        for measures, predicted in zip(found, labels, strict=False):
            if predicted is not None:
                measures.update(predicted, truth)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
