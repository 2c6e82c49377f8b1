"""Draws one generated scene; the docstring of ``generate_scenes`` has the rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from . import _drawing as draw
from ._opencv import opencv
from .dataset import IGNORED
from .images import Image

SCENE_CLASSES = ("background", "wheel", "pebble", "boulder", "day lamp", "night lamp", "hedge")
BACKGROUND, WHEEL, PEBBLE, BOULDER, DAY_LAMP, NIGHT_LAMP, HEDGE = range(7)
# Sizes are in units. The shorter side of a scene has this many, more or fewer by a quarter.
UNITS = 40
TRIES = 40
SKY_UNITS = 3.0  # period of the sky's pattern


@dataclass(frozen=True)
class Kind:
    """How objects of one kind look, and how many a square scene has."""

    label: int
    count: tuple[int, int]  # fewest and most
    radius: tuple[float, float]  # in units
    outline: Callable[[draw.Place], Image]
    texture: draw.Texture
    highest: float = 0.25  # place of the centre; 0 is the upper side of the scene, 1 the lower


def _wheel(place: draw.Place) -> Image:
    return draw.wheel(place, 0.9 * place.unit, 0.7 * place.unit)


def _kinds(lamp: int) -> tuple[Kind, ...]:
    """Returns what is drawn, in this order. Shapes without texture are background."""
    return (
        Kind(HEDGE, (1, 2), (4.5, 7), draw.blob, draw.speckles),
        Kind(BACKGROUND, (1, 1), (4, 7), draw.blob, draw.plain),
        Kind(BOULDER, (1, 2), (4.3, 5.5), draw.disc, draw.stripes),
        Kind(lamp, (3, 4), (3, 4.5), draw.box, draw.checks, highest=0.6),
        Kind(WHEEL, (2, 3), (3.5, 5.5), _wheel, draw.plain),
        Kind(BACKGROUND, (0, 1), (3, 4.5), draw.box, draw.plain),
        Kind(PEBBLE, (5, 8), (1.6, 2.2), draw.disc, draw.stripes),
        Kind(BACKGROUND, (1, 3), (1.6, 5.5), draw.disc, draw.plain),
    )


@dataclass
class _Canvas:
    """A scene while it is drawn."""

    random: np.random.Generator
    image: NDArray[np.float32]  # [H, W, 3]
    labels: Image  # [H, W]
    unit: float  # in pixels
    colours: list[NDArray[np.float64]] = field(default_factory=list)  # of ground and sky
    places: list[draw.Place] = field(default_factory=list)  # that are taken

    def new_colour(self) -> NDArray[np.float64]:
        """Returns a colour that differs from those of ground and sky."""
        for _ in range(TRIES):
            colour = self.random.uniform(45, 210, 3)
            if all(np.linalg.norm(colour - other) > 70 for other in self.colours):
                break
        return colour

    def free_place(self, kind: Kind) -> draw.Place | None:
        """Returns a place where little is covered, or None if none is found."""
        height, width = self.labels.shape
        radius = self.unit * self.random.uniform(*kind.radius)
        for _ in range(TRIES):
            x = self.random.uniform(0.3 * radius, width - 0.3 * radius)
            y = self.random.uniform(kind.highest * height, height - 0.3 * radius)
            place = draw.Place(x, y, radius, self.unit, self.random)
            if all(place.is_apart_from(other) for other in self.places):
                return place
        return None

    def paint(self, kind: Kind, place: draw.Place) -> None:
        """Covers the pixels of an object with a new colour, its texture, and light from a side."""
        mask, texture = kind.outline(place), kind.texture(place)
        across, _ = place.grid()
        light = self.random.uniform(0, 12) * place.unit / place.radius * across
        grey = light + self.random.uniform(16, 30) * texture
        inside, cut = place.slices(self.labels.shape)
        opacity = (mask[cut].astype(np.float32) / 255)[..., None]
        colour = self.new_colour().astype(np.float32) + grey[cut][..., None]
        self.image[inside] += opacity * (colour - self.image[inside])
        self.labels[inside][mask[cut] > 127] = kind.label


def draw_scene(size: tuple[int, int], random: np.random.Generator) -> tuple[Image, Image]:
    """Returns a picture ``[H, W, 3]``, red, green, blue, and its labels ``[H, W]``, both uint8."""
    unit = min(size) / UNITS * random.uniform(0.8, 1.25)
    canvas = _Canvas(random, np.empty((*size, 3), np.float32), np.zeros(size, np.uint8), unit)
    day = random.random() < 0.5
    _paint_ground_and_sky(canvas, day)
    area = size[0] * size[1] / min(size) ** 2
    for kind in _kinds(DAY_LAMP if day else NIGHT_LAMP):
        for _ in range(round(area * random.integers(*kind.count, endpoint=True))):
            if (place := canvas.free_place(kind)) is not None:
                canvas.paint(kind, place)
                canvas.places.append(place)
    return _photographed(canvas), _with_borders(canvas.labels)


def _paint_ground_and_sky(canvas: _Canvas, day: bool) -> None:
    random, (height, width) = canvas.random, canvas.labels.shape
    ground = canvas.new_colour()
    canvas.colours.append(ground)
    sky = canvas.new_colour()
    canvas.colours.append(sky)
    rough = 7 * draw.noise(random, (height, width), 4 * canvas.unit)
    rough += 4 * draw.noise(random, (height, width), canvas.unit)
    canvas.image[:] = ground + rough[..., None]
    columns = np.arange(width, dtype=np.float32)
    hills = draw.noise(random, (1, width), 6 * canvas.unit)[0]
    horizon = height * (random.uniform(0.15, 0.22) + 0.01 * hills)
    lowest = int(np.ceil(horizon.max())) + 1
    rows = np.arange(lowest, dtype=np.float32)[:, None]
    period = SKY_UNITS * canvas.unit
    pattern = draw.wave(columns / period + random.random()) * np.ones_like(rows)
    if not day:
        pattern = pattern * draw.wave(rows / period + random.random())
    # The horizon is one pixel soft.
    opacity = (horizon - rows).clip(0, 1)[..., None]
    painted = sky + random.uniform(16, 30) * pattern[..., None] + rough[:lowest, :, None] / 2
    canvas.image[:lowest] += opacity * (painted - canvas.image[:lowest])


def _photographed(canvas: _Canvas) -> Image:
    """Adds light that falls from one side, and the noise of a camera."""
    random, (height, width) = canvas.random, canvas.labels.shape
    across, down = random.uniform(-0.25, 0.25, 2).astype(np.float32)
    light = 1 + across * np.linspace(-1, 1, width, dtype=np.float32)
    light = light + down * np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    grain = random.standard_normal(canvas.image.shape, np.float32)
    grain *= random.uniform(2, 5)
    grain += canvas.image * light[..., None]
    # Half a grey level more rounds to the nearest one.
    return np.asarray((grain + np.float32(0.5)).clip(0, 255), np.uint8)


def _with_borders(labels: Image) -> Image:
    """Gives the pixels on both sides of a border between labels the label 255."""
    cv2 = opencv()
    square = np.ones((3, 3), np.uint8)
    border = cv2.dilate(labels, square) != cv2.erode(labels, square)
    return np.where(border, np.uint8(IGNORED), labels)
