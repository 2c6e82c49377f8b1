"""Reads and writes photographs and label maps with OpenCV; the colour order is red, green, blue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import png
from ._opencv import opencv
from .palette import voc_palette

Image = NDArray[np.uint8]
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".tif", ".tiff", ".webp")


class ImageError(ValueError):
    """A file is not a usable image or label map; the message names the file and the reason."""


def read_image(path: str | Path) -> Image:
    """Reads any format that OpenCV knows, as ``[H, W, 3]`` uint8 in the order red, green, blue.

    Raises:
        ImageError: there is no such file, or it is not an image.
    """
    return _in_colour(_read(path), path)


def read_labels(path: str | Path) -> Image:
    """Reads a label map from a PNG, as ``[H, W]`` uint8.

    For indexed and grey PNGs the labels are the numbers in the file. For colour PNGs the labels are
    looked up in the palette of PASCAL VOC. No other colours may occur.

    Raises:
        ImageError: there is no such file, it is not a PNG, a label is above 255, or a colour is not
            in the palette.
    """
    file = _read(path)
    found = png.header(file)
    if found is None:
        raise ImageError(f"{path}: labels must be a PNG file")
    bits, colour_type = found
    if colour_type not in (png.GREY, png.PALETTE):
        return _labels_from_colours(_in_colour(file, path), path)
    labels = _decode(png.as_grey(file), opencv().IMREAD_UNCHANGED, path)
    if bits < 8:
        # Decoders scale samples of 1, 2 and 4 bits to the range 0 to 255.
        labels = labels // (255 // (2**bits - 1))
    if labels.max() > 255:
        raise ImageError(f"{path}: labels must be at most 255, found {labels.max()}")
    return labels.astype(np.uint8)


def write_labels(path: str | Path, labels: Image) -> None:
    """Writes ``labels`` ``[H, W]`` as an 8-bit indexed PNG in the colours of PASCAL VOC."""
    Path(path).write_bytes(png.encode_indexed(labels, voc_palette()))


def write_image(path: str | Path, image: Image) -> None:
    """Writes ``image`` ``[H, W, 3]`` as a PNG."""
    _, encoded = opencv().imencode(".png", np.ascontiguousarray(image[..., ::-1]))
    Path(path).write_bytes(encoded.tobytes())


def overlay(image: Image, labels: Image, opacity: float = 0.5) -> Image:
    """Tints a photograph by label and draws white lines where labels meet.

    The background (label 0) gets no tint.

    Args:
        image: ``[H, W, 3]`` uint8.
        labels: ``[H, W]`` uint8.
        opacity: 0 shows only the photograph, 1 only the colours.
    """
    tinted = (1 - opacity) * image + opacity * voc_palette()[labels]
    result = np.where(labels[..., None] > 0, np.rint(tinted), image).astype(np.uint8)
    edge = np.zeros(labels.shape, bool)
    edge[:-1] |= labels[:-1] != labels[1:]
    edge[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    result[edge] = 255
    return result


def _read(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror or error}") from error


def _in_colour(file: bytes, path: str | Path) -> Image:
    cv2 = opencv()
    return np.asarray(cv2.cvtColor(_decode(file, cv2.IMREAD_COLOR, path), cv2.COLOR_BGR2RGB))


def _decode(file: bytes, flags: int, path: str | Path) -> NDArray[Any]:
    # For a broken file OpenCV raises an exception or returns nothing. It also logs a message, which
    # is silenced because ImageError reports the file.
    cv2 = opencv()
    logging = cv2.utils.logging
    level = logging.setLogLevel(logging.LOG_LEVEL_SILENT)
    try:
        image = cv2.imdecode(np.frombuffer(file, np.uint8), flags) if file else None
    except cv2.error:
        image = None
    finally:
        logging.setLogLevel(level)
    if image is None:
        raise ImageError(f"{path}: not an image that OpenCV can read")
    return np.asarray(image)


def _labels_from_colours(colours: Image, path: str | Path) -> Image:
    # In the palette a label's bits 0, 3, 6 are the highest of red, from the top down; 1, 4, 7 those
    # of green, and 2, 5 those of blue. All lower bits of the colours are 0.
    cv2 = opencv()
    red, green, blue = cv2.split(colours)
    if foreign := np.count_nonzero((red | green) & 31 | blue & 63):
        raise ImageError(
            f"{path}: colour labels must use the palette of PASCAL VOC; {foreign} pixels do not"
        )
    return np.asarray(cv2.LUT(red | green >> 3 | blue >> 6, _LABEL_OF_HIGH_BITS))


def _label_of_high_bits() -> Image:
    """Returns the label of a byte that has the high bits of red, green and blue in this order."""
    palette = voc_palette()
    labels = np.empty(256, np.uint8)
    labels[palette[:, 0] | palette[:, 1] >> 3 | palette[:, 2] >> 6] = np.arange(256)
    return labels


_LABEL_OF_HIGH_BITS = _label_of_high_bits()
