"""Reads and writes images, label maps and scores, and colours labels."""

from ._opencv import OpenCVMissing, opencv
from .images import Image, ImageError, overlay, read_image, read_labels, write_image, write_labels
from .palette import VOC_CLASSES, voc_palette
from .scores import SCORES_SUFFIXES, read_scores

__all__ = [
    "SCORES_SUFFIXES",
    "VOC_CLASSES",
    "Image",
    "ImageError",
    "OpenCVMissing",
    "opencv",
    "overlay",
    "read_image",
    "read_labels",
    "read_scores",
    "voc_palette",
    "write_image",
    "write_labels",
]
