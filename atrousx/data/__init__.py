"""Images and label maps as files: reading, writing, colours."""

from .images import Image, ImageError, overlay, read_image, read_labels, write_image, write_labels
from .palette import VOC_CLASSES, voc_palette

__all__ = [
    "VOC_CLASSES",
    "Image",
    "ImageError",
    "overlay",
    "read_image",
    "read_labels",
    "voc_palette",
    "write_image",
    "write_labels",
]
