"""The parts of PNG that OpenCV lacks: writing labels with a palette, and reading them as indices.

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
    """Yields kind and data of each chunk up to the end of the file; does not test checksums."""
    position = len(SIGNATURE)
    while position + 8 <= len(file):
        length, kind = struct.unpack_from(">I4s", file, position)
        yield kind, file[position + 8 : position + 8 + length]
        position += 12 + length


def header(file: bytes) -> tuple[int, int] | None:
    """Returns bits per sample and colour type, or None if the file is not a PNG."""
    kind, data = next(chunks(file), (b"", b""))
    if not file.startswith(SIGNATURE) or kind != b"IHDR" or len(data) != 13:
        return None
    return data[8], data[9]


def encode_indexed(labels: NDArray[np.uint8], palette: NDArray[np.uint8]) -> bytes:
    """Returns an 8-bit PNG that stores ``labels`` ``[H, W]`` as indices of ``palette``.

    ``palette`` is ``[256, 3]`` in the order red, green, blue.
    """
    height, width = labels.shape
    # Each row begins with the number of its filter. 0 is no filter: differences between indices
    # mean nothing, so a filter would not help. Level 9 of zlib would save a quarter of the bytes
    # and take four times as long.
    rows = np.pad(labels, ((0, 0), (1, 0)))
    return b"".join(
        (
            SIGNATURE,
            chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, PALETTE, 0, 0, 0)),
            chunk(b"PLTE", palette.astype(np.uint8).tobytes()),
            chunk(b"IDAT", zlib.compress(rows.tobytes(), 6)),
            chunk(b"IEND", b""),
        )
    )


def as_grey(file: bytes) -> bytes:
    """Returns the PNG without its palette, so that a decoder returns indices, not colours.

    Only the header and the samples are kept. Colour profiles and transparency would change the
    indices.
    """
    parts = [SIGNATURE]
    for kind, data in chunks(file):
        if kind == b"IHDR":
            data = data[:9] + bytes([GREY]) + data[10:]
        if kind in (b"IHDR", b"IDAT", b"IEND"):
            parts.append(chunk(kind, data))
    return b"".join(parts)
