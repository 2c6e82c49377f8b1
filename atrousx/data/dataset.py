"""What all datasets of labelled photographs have in common, whatever the layout of their files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from . import png
from ._opencv import one_thread_in_workers
from .images import Image, ImageError, read_image, read_labels
from .palette import voc_palette

IGNORED = 255


class DatasetError(ImageError):
    """A dataset is not usable; the message names the file or folder and the reason."""


class Sample(NamedTuple):
    """A photograph and its labels."""

    name: str
    image: Image  # [H, W, 3] uint8, red, green, blue
    labels: Image  # [H, W] uint8, 255 where the label is unknown


class Files(NamedTuple):
    """The files of one sample."""

    image: Path
    labels: Path


class LabelTable(NamedTuple):
    """How the numbers in label files and the labels of a dataset correspond.

    A number that a file must not hold has in ``of_number`` a label that is no class and not 255.
    """

    of_number: Image  # [256] uint8, the label of each number in a file
    of_label: Image  # [256] uint8, the number that a file gets for each label


class SegmentationDataset(Dataset[Sample]):
    """Photographs and their labels, read from files when they are asked for.

    The subclasses know layouts of files: ``VOC``, ``Cityscapes`` and ``Folder``. Create one of
    these. In the workers of a ``torch.utils.data.DataLoader`` OpenCV uses one thread.

    Attributes:
        names: the name of each sample, in the order of the list.
        classes: the name of each class. A label is a number from 0 to ``len(classes) - 1``.
        table: how the numbers in label files become labels. None leaves them as they are.
        ignore_index: 255, the label of pixels that do not count.
        truth: whether there are label files. Without them every label is 255, as in the test splits
            of benchmarks.

    Raises:
        DatasetError: a file is missing, cannot be read, or does not fit. The constructor finds
            missing files. Reading a sample finds the rest.
    """

    ignore_index: int = IGNORED

    def __init__(
        self,
        names: Sequence[str],
        files: Sequence[Files],
        classes: Sequence[str],
        *,
        table: LabelTable | None = None,
        truth: bool = True,
    ) -> None:
        self.names = tuple(names)
        self.classes = tuple(classes)
        self.table = table
        self.truth = truth
        self._files = tuple(files)

    @property
    def num_classes(self) -> int:
        """The number of classes; 255 is none of them."""
        return len(self.classes)

    def files(self, index: int) -> Files:
        """Returns the paths of a sample's photograph and label file."""
        return self._files[index]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        """Reads one sample. Negative numbers count from the end, as in a list.

        Raises:
            IndexError: there is no sample with this number.
            DatasetError: a file cannot be read, the sizes differ, or a label is not a class.
        """
        files = self._files[index]
        one_thread_in_workers()
        try:
            image = read_image(files.image)
            if not self.truth:
                return Sample(self.names[index], image, np.full(image.shape[:2], IGNORED, np.uint8))
            labels = self._labels(files.labels)
        except ImageError as error:
            raise DatasetError(str(error)) from error
        if misfit := _misfit(files, image, labels):
            raise DatasetError(misfit)
        return Sample(self.names[index], image, labels)

    def label_file(self, labels: Image) -> bytes:
        """Encodes predicted labels as a PNG in the format of the dataset's own label files.

        Args:
            labels: ``[H, W]`` uint8, each a class, or 255.

        Returns:
            An indexed PNG in the colours of PASCAL VOC. For Cityscapes a grey PNG of labelIds.

        Raises:
            TypeError: ``labels`` are not uint8.
            ValueError: ``labels`` are not ``[H, W]``, or one is not a class.
        """
        labels = np.asarray(labels)
        if labels.dtype != np.uint8:
            raise TypeError(f"labels must be uint8, got {labels.dtype}")
        if labels.ndim != 2 or labels.size == 0:
            raise ValueError(f"labels must be [height, width], got shape {labels.shape}")
        if (foreign := self._foreign(labels)).any():
            raise ValueError(
                f"labels must be at most {self.num_classes - 1}, or 255, got {labels[foreign][0]}"
            )
        return self._encode(labels if self.table is None else self.table.of_label[labels])

    def label_file_name(self, index: int) -> str:
        """Returns the name that a benchmark's server expects for the labels of a sample."""
        return f"{self.names[index].rpartition('/')[2]}.png"

    def check(self, progress: Callable[[], None] | None = None) -> list[str]:
        """Reads every file and returns the faults, one line for each.

        Args:
            progress: called after each sample.

        Returns:
            Sentences that each name a file. The list is empty if all is well.
        """
        faults = []
        for files in self._files:
            faults += self._faults(files)
            if progress is not None:
                progress()
        return faults

    def _faults(self, files: Files) -> list[str]:
        found: list[str] = []
        read: list[Image] = []
        readers = [(read_image, files.image), (self._labels, files.labels)]
        for reader, path in readers if self.truth else readers[:1]:
            try:
                read.append(reader(path))
            except ImageError as error:
                found.append(str(error))
        if len(read) == 2 and (misfit := _misfit(files, *read)):
            found.append(misfit)
        return found

    def _labels(self, path: str | Path) -> Image:
        numbers = read_labels(path)
        labels = numbers if self.table is None else self.table.of_number[numbers]
        if (foreign := self._foreign(labels)).any():
            raise DatasetError(
                f"{path}: {foreign.sum()} pixels hold {numbers[foreign][0]}, which this dataset "
                f"of {self.num_classes} classes does not know"
            )
        return labels

    def _foreign(self, labels: Image) -> NDArray[np.bool_]:
        """Returns where labels are neither a class nor 255."""
        return np.asarray((labels >= self.num_classes) & (labels != self.ignore_index))

    def _encode(self, numbers: Image) -> bytes:
        return png.encode_indexed(numbers, voc_palette())


def _misfit(files: Files, image: Image, labels: Image) -> str | None:
    """Returns a sentence if photograph and labels differ in size."""
    if labels.shape == image.shape[:2]:
        return None
    sizes = [f"{width}x{height}" for height, width in (labels.shape, image.shape[:2])]
    return f"{files.labels} is {sizes[0]}, but {files.image} is {sizes[1]}"
