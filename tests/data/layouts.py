"""Small datasets in each layout, for the tests of everything that reads one."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from atrousx.data import Image, write_image, write_labels

SIZE = (6, 8)
NAMES = ("one", "two", "three")


def photograph(seed: int) -> Image:
    return np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def labels(seed: int, numbers: tuple[int, ...] = (0, 1, 2, 255)) -> Image:
    return np.random.default_rng(seed + 100).choice(np.array(numbers, np.uint8), SIZE)


def write_grey(path: Path, numbers: Image) -> None:
    assert cv2.imwrite(str(path), numbers)


def write_list(path: Path, lines: tuple[str, ...]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def write_voc(root: Path) -> Path:
    """Writes labels of 3 classes; those in SegmentationClassAug are grey and have other seeds."""
    for folder in ("JPEGImages", "SegmentationClass", "SegmentationClassAug"):
        (root / folder).mkdir(parents=True)
    for seed, name in enumerate(NAMES):
        write_image(root / "x.png", photograph(seed))
        (root / "x.png").rename(root / "JPEGImages" / f"{name}.jpg")
        write_labels(root / "SegmentationClass" / f"{name}.png", labels(seed))
        write_grey(root / "SegmentationClassAug" / f"{name}.png", labels(seed + 10))
    lists = root / "ImageSets" / "Segmentation"
    write_list(lists / "train.txt", NAMES[:2])
    write_list(lists / "val.txt", NAMES[2:])
    write_list(lists / "train_aug.txt", NAMES)
    return root


CITIES = {"aachen": ("aachen_000000_000019", "aachen_000001_000019"), "bonn": ("bonn_0_1",)}
IDS = (0, 4, 7, 11, 33)  # two that are ignored, then the classes 0, 2 and 18


def write_cityscapes(root: Path) -> Path:
    for city, names in CITIES.items():
        photographs, truth = (root / kind / "val" / city for kind in ("leftImg8bit", "gtFine"))
        photographs.mkdir(parents=True)
        truth.mkdir(parents=True)
        for seed, name in enumerate(names):
            write_image(photographs / f"{name}_leftImg8bit.png", photograph(seed))
            write_grey(truth / f"{name}_gtFine_labelIds.png", labels(seed, IDS))
            write_grey(truth / f"{name}_gtFine_instanceIds.png", labels(seed, IDS))
    return root


def write_folder(root: Path) -> Path:
    for seed, name in enumerate(NAMES):
        for kind in ("images", "labels"):
            (root / kind).mkdir(parents=True, exist_ok=True)
        write_image(root / "images" / f"{name}.png", photograph(seed))
        write_labels(root / "labels" / f"{name}.png", labels(seed))
    write_list(root / "classes.txt", ("ground", "tree", "house"))
    write_list(root / "train.txt", NAMES[:2])
    write_list(root / "splits" / "val.txt", ("three.png",))
    return root
