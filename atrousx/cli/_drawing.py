"""Text on pictures that the commands draw, with OpenCV."""

from __future__ import annotations

import numpy as np

from ..data import Image, opencv

INK, PAPER = (40, 40, 40), 255


def text_width(text: str, scale: float) -> int:
    cv2 = opencv()
    return int(cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)[0][0])


def write(
    image: Image,
    text: str,
    place: tuple[int, int],
    scale: float,
    ink: tuple[int, int, int] = INK,
) -> None:
    cv2 = opencv()
    drawn = np.ascontiguousarray(image)
    cv2.putText(drawn, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, ink, 1, cv2.LINE_AA)
    image[:] = drawn
