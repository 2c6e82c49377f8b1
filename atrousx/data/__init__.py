"""Datasets of labelled photographs; images, label maps and scores as files; colours of labels."""

from ._opencv import OpenCVMissing, opencv
from ._scene import SCENE_CLASSES
from .augment import Augmentation, Augmented
from .cityscapes import CITYSCAPES_CLASSES, Cityscapes
from .dataset import DatasetError, Files, Sample, SegmentationDataset
from .folder import Folder
from .images import (
    IMAGE_SUFFIXES,
    Image,
    ImageError,
    overlay,
    read_image,
    read_labels,
    write_image,
    write_labels,
)
from .layouts import DATASETS, open_dataset
from .palette import VOC_CLASSES, voc_palette
from .scenes import generate_scenes
from .scores import SCORES_SUFFIXES, read_scores
from .voc import VOC

__all__ = [
    "CITYSCAPES_CLASSES",
    "DATASETS",
    "IMAGE_SUFFIXES",
    "SCENE_CLASSES",
    "SCORES_SUFFIXES",
    "VOC",
    "VOC_CLASSES",
    "Augmentation",
    "Augmented",
    "Cityscapes",
    "DatasetError",
    "Files",
    "Folder",
    "Image",
    "ImageError",
    "OpenCVMissing",
    "Sample",
    "SegmentationDataset",
    "generate_scenes",
    "open_dataset",
    "opencv",
    "overlay",
    "read_image",
    "read_labels",
    "read_scores",
    "voc_palette",
    "write_image",
    "write_labels",
]
