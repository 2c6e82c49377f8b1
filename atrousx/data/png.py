"""The little of PNG that OpenCV lacks: writing label maps with a palette, reading them as indices.

Source: the PNG specification (ISO/IEC 15948), https://www.w3.org/TR/png-3/.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, PALETTE = 0, 3  # colour types of the header


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def chunks(file: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and data of each chunk, as far as the file goes; checksums are the decoder's matter."""
    position = len(SIGNATURE)
    while position + 8 <= len(file):
        length, kind = struct.unpack_from(">I4s", file, position)
        yield kind, file[position + 8 : position + 8 + length]
        position += 12 + length


def header(file: bytes) -> tuple[int, int] | None:
    """Bits a sample and colour type, or None where the file is no PNG."""
    kind, data = next(chunks(file), (b"", b""))
    if not file.startswith(SIGNATURE) or kind != b"IHDR" or len(data) != 13:
        return None
    return data[8], data[9]


def encode_indexed(labels: NDArray[np.uint8], palette: NDArray[np.uint8]) -> bytes:
    """An 8-bit PNG that stores ``labels`` ``[H, W]`` as they are, shown in ``palette``'s colours.

    ``palette`` is ``[256, 3]`` in the order red, green, blue.
    """
    height, width = labels.shape
    # Each row opens with its filter: none, the choice for indices, whose differences mean nothing.
    rows = np.pad(labels, ((0, 0), (1, 0)))
    return b"".join(
        (
            SIGNATURE,
            chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, PALETTE, 0, 0, 0)),
            chunk(b"PLTE", palette.astype(np.uint8).tobytes()),
            chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)),
            chunk(b"IEND", b""),
        )
    )


def as_grey(file: bytes) -> bytes:
    """The same PNG with its palette taken off, so that a decoder gives indices, not colours.

    Only the header and the samples are kept: colour profiles and transparency are about how
    a picture looks, and indices are no picture.
    """
    parts = [SIGNATURE]
    for kind, data in chunks(file):
        if kind == b"IHDR":
            data = data[:9] + bytes([GREY]) + data[10:]
        if kind in (b"IHDR", b"IDAT", b"IEND"):
            parts.append(chunk(kind, data))
    return b"".join(parts)
