"""Draws the parts of generated scenes: textures, outlines and objects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ._opencv import opencv
from .images import Image

Plane = NDArray[np.float32]
Texture = Callable[["Place"], Plane]
# OpenCV takes coordinates in 1/16 pixels.
SHIFT = 4


@dataclass(frozen=True)
class Place:
    """A square part of the scene, and what its textures need."""

    x: float  # the centre, in pixels of the scene
    y: float
    radius: float  # reaches from the centre to the sides
    unit: float  # pixels that all sizes of the scene are measured in
    random: np.random.Generator

    def corner(self) -> tuple[int, int]:
        """Returns the top left pixel, row and column."""
        return int(np.floor(self.y - self.radius)), int(np.floor(self.x - self.radius))

    def slices(self, size: tuple[int, ...]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Returns where the place lies in a scene, and which part of it is in the scene."""
        row, column = self.corner()
        height, width = size
        inside = slice(max(row, 0), row + self.side()), slice(max(column, 0), column + self.side())
        cut = slice(max(-row, 0), height - row), slice(max(-column, 0), width - column)
        return inside, cut

    def is_apart_from(self, other: Place) -> bool:
        """Whether two places overlap little or not at all."""
        distance = np.hypot(self.x - other.x, self.y - other.y)
        return bool(distance > 0.85 * (self.radius + other.radius))

    def side(self) -> int:
        return int(np.ceil(2 * self.radius)) + 2

    def grid(self) -> tuple[Plane, Plane]:
        """Returns x and y of all pixels, seen from the centre, in units, turned at random."""
        row, column = self.corner()
        steps = np.arange(self.side(), dtype=np.float32)
        x, y = (column + steps - self.x) / self.unit, (row + steps - self.y) / self.unit
        angle = self.random.uniform(0, np.pi)
        across = np.cos(angle) * x + np.sin(angle) * y[:, None]
        along = np.cos(angle) * y[:, None] - np.sin(angle) * x
        return across.astype(np.float32), along.astype(np.float32)


def plain(place: Place) -> Plane:
    """No texture."""
    return np.zeros((place.side(),) * 2, np.float32)


def stripes(place: Place) -> Plane:
    """Stripes of one unit, dark and light."""
    across, _ = place.grid()
    return wave(across)


def checks(place: Place) -> Plane:
    """A checkerboard whose squares have half a unit."""
    across, along = place.grid()
    return wave(across) * wave(along)


def speckles(place: Place) -> Plane:
    """Dark and light grains of about half a unit, without order."""
    return np.tanh(2 * noise(place.random, (place.side(),) * 2, place.unit / 2))


def wave(x: Plane) -> Plane:
    # Steeper than a sine, and not as hard as a step, which JPEG would ring at.
    return np.asarray(np.tanh(3 * np.sin(2 * np.pi * x)), np.float32)


def noise(random: np.random.Generator, size: tuple[int, int], grain: float) -> Plane:
    """Returns smooth noise ``[H, W]`` of mean 0 and deviation 1, with ``grain`` pixels a bump."""
    height, width = (int(np.ceil(n / grain)) + 3 for n in size)
    coarse = random.standard_normal((height, width), np.float32)
    scaled = (int(np.ceil(width * grain)), int(np.ceil(height * grain)))
    cv2 = opencv()
    fine = cv2.resize(coarse, scaled, interpolation=cv2.INTER_CUBIC)
    # The first bump lies half outside.
    start = int(grain)
    return np.asarray(fine[start : start + size[0], start : start + size[1]])


# Outlines: masks [side, side] uint8 of a place, 255 inside, with smooth edges.


def disc(place: Place) -> Image:
    centre, mask = _canvas(place)
    radius = _fixed(place.radius)
    opencv().circle(mask, centre, radius, 255, -1, opencv().LINE_AA, SHIFT)
    return mask


def box(place: Place) -> Image:
    """A rectangle that stands upright or leans a little."""
    _, mask = _canvas(place)
    half = np.array([place.random.uniform(0.5, 0.75), place.random.uniform(0.6, 0.8)])
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half * place.radius
    return _polygon(place, mask, _turned(corners, place.random.uniform(-0.3, 0.3)))


def blob(place: Place) -> Image:
    """A shape without corners: the radius changes smoothly around the centre."""
    _, mask = _canvas(place)
    angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    radius = np.ones_like(angle)
    for waves in (2, 3, 5):
        radius += place.random.uniform(0.05, 0.18) * np.cos(
            waves * angle + place.random.uniform(0, 2 * np.pi)
        )
    radius *= place.radius / radius.max()
    return _polygon(place, mask, np.stack([np.cos(angle), np.sin(angle)], 1) * radius[:, None])


def wheel(place: Place, rim: float, spoke: float) -> Image:
    """A rim with three to five spokes right across, ``rim`` and ``spoke`` pixels wide."""
    cv2 = opencv()
    centre, mask = _canvas(place)
    cv2.circle(mask, centre, _fixed(place.radius), 255, -1, cv2.LINE_AA, SHIFT)
    cv2.circle(mask, centre, _fixed(place.radius - rim), 0, -1, cv2.LINE_AA, SHIFT)
    first, count = place.random.uniform(0, np.pi), place.random.integers(2, 5)
    long, thin = place.radius - rim / 2, spoke / 2
    corners = np.array([[-long, -thin], [long, -thin], [long, thin], [-long, thin]])
    for number in range(count):
        _polygon(place, mask, _turned(corners, first + np.pi * number / count))
    return mask


def _canvas(place: Place) -> tuple[tuple[int, int], Image]:
    row, column = place.corner()
    return (
        (_fixed(place.x - column), _fixed(place.y - row)),
        np.zeros((place.side(),) * 2, np.uint8),
    )


def _fixed(pixels: float) -> int:
    return round(pixels * (1 << SHIFT))


def _turned(points: NDArray[np.float64], angle: float) -> NDArray[np.float64]:
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.asarray(points @ np.array([[cosine, sine], [-sine, cosine]]))


def _polygon(place: Place, mask: Image, points: NDArray[np.float64]) -> Image:
    row, column = place.corner()
    centre = np.array([place.x - column, place.y - row])
    at = (points + centre) * (1 << SHIFT)
    opencv().fillPoly(mask, [np.rint(at).astype(np.int32)], 255, opencv().LINE_AA, SHIFT)
    return mask
