"""Writes generated scenes: labelled pictures that ask of a network what DeepLab was made for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ._opencv import opencv
from ._scene import SCENE_CLASSES, draw_scene
from .dataset import DatasetError
from .images import Image, write_labels
from .voc import LISTS

FOLDERS = ("JPEGImages", "SegmentationClass", str(LISTS))
QUALITY = (80, 96)  # of the JPEG files
SMALLEST = 64


def generate_scenes(
    folder: str | Path,
    *,
    train: int = 200,
    val: int = 50,
    size: tuple[int, int] = (321, 321),
    seed: int = 0,
    progress: Callable[[], None] | None = None,
) -> None:
    """Writes generated scenes in the layout of PASCAL VOC, for ``VOC`` to read.

    A scene has a ground, a strip of sky, and objects in colours drawn at random: a colour tells
    nothing about the class. Texture, size, shape and the sky tell it. All sizes are in units; the
    shorter side of a scene has 32 to 50 units.

    ==============  ===============================================================================
    background      ground, sky, and discs, boxes and blobs without texture
    wheel           a rim and spokes, 0.7 to 0.9 units wide: the edges must be fine
    pebble          a striped disc with a radius of 1.6 to 2.2 units
    boulder         the same, with a radius of 4.3 to 5.5: only the size differs
    day lamp        a checkered box, where the sky has stripes
    night lamp      the same, where the sky has checks: the sky is a third of the scene away
    hedge           a speckled blob: the texture must be told from stripes and checks
    ==============  ===============================================================================

    Stripes and checks have a period of one unit, so the size of a disc can be told at every scale.
    A crop without sky cannot tell the two lamps apart. Light falls from one side, objects cover
    each other a little, and pictures have noise and are stored as JPEG. Pixels on both sides of a
    border between labels have the label 255.

    Args:
        folder: is made if it is missing; otherwise it must be empty.
        train: number of scenes in the list "train".
        val: number of scenes in the list "val". The list "trainval" has both.
        size: height and width of a scene, at least 64 each.
        seed: a whole number, not negative. The same seed gives the same files on the same machine
            with the same versions of OpenCV and NumPy. A scene depends on seed, size, list and its
            number in the list.
        progress: called after each scene.

    Raises:
        DatasetError: the folder is not empty, or cannot be written.
        ValueError: a number is out of range.

    Example:
        >>> import tempfile
        >>> from atrousx.data import VOC, generate_scenes
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     generate_scenes(folder, train=2, val=1, size=(64, 96))
        ...     dataset = VOC(folder, "train")
        ...     dataset.num_classes, dataset.names, dataset[0].labels.shape
        (7, ('train_000000', 'train_000001'), (64, 96))
    """
    counts = {"train": train, "val": val}
    for name, number in (*counts.items(), ("seed", seed)):
        if number < 0:
            raise ValueError(f"{name} must not be negative, got {number}")
    if len(size) != 2 or min(size) < SMALLEST:
        raise ValueError(f"size must be height and width of at least {SMALLEST}, got {size}")
    root = Path(folder)
    try:
        _write_lists(root, counts)
        for number, (split, count) in enumerate(counts.items()):
            for index in range(count):
                random = np.random.default_rng((seed, number, index))
                image, labels = draw_scene(size, random)
                _write(root, _name(split, index), image, labels, int(random.integers(*QUALITY)))
                if progress is not None:
                    progress()
    except OSError as error:
        raise DatasetError(f"{error.filename or root}: {error.strerror or error}") from error


def _name(split: str, index: int) -> str:
    return f"{split}_{index:06}"


def _write_lists(root: Path, counts: dict[str, int]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    if any(root.iterdir()):
        raise DatasetError(f"{root}: must be empty, so that no other files are overwritten")
    for folder in FOLDERS:
        (root / folder).mkdir(parents=True)
    names = {split: [_name(split, index) for index in range(n)] for split, n in counts.items()}
    names["trainval"] = [name for listed in names.values() for name in listed]
    for split, listed in names.items():
        (root / LISTS / f"{split}.txt").write_text("".join(f"{name}\n" for name in listed))
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in SCENE_CLASSES))


def _write(root: Path, name: str, image: Image, labels: Image, quality: int) -> None:
    cv2 = opencv()
    options = [cv2.IMWRITE_JPEG_QUALITY, quality]
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    (root / "JPEGImages" / f"{name}.jpg").write_bytes(encoded.tobytes())
    write_labels(root / "SegmentationClass" / f"{name}.png", labels)
