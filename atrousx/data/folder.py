"""The simplest layout: a folder of photographs and a folder of label files with the same names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from ._files import checked_classes, demand, read_classes, read_lines, scan
from .dataset import DatasetError, Files, SegmentationDataset
from .images import IMAGE_SUFFIXES


class Folder(SegmentationDataset):
    """Photographs and label files that have the same names.

    =======================================  ===================================================
    ``images/NAME.jpg`` (or another format)  the photograph
    ``labels/NAME.png``                      its labels: an indexed, grey or colour PNG
    ``SPLIT.txt`` or ``splits/SPLIT.txt``    the names of a split, one on each line
    ``classes.txt``                          the names of the classes, one on each line
    =======================================  ===================================================

    A name may have folders in it, such as ``training/one``. A suffix in a list is left out.

    Args:
        root: the folder.
        split: the name of the list. None takes every photograph in ``images``.
        classes: the names of the classes, or their number. None reads ``classes.txt``.
        truth: whether the split has labels.

    Raises:
        DatasetError: a list, a folder or a file that a list names is missing, two photographs have
            the same name, or nothing tells the classes.
        TypeError: ``classes`` are neither names nor a number.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import numpy as np
        >>> from atrousx.data import Folder, write_image, write_labels
        >>> folder = tempfile.TemporaryDirectory()
        >>> for name in ("images", "labels"):
        ...     (Path(folder.name) / name).mkdir()
        >>> write_image(f"{folder.name}/images/one.png", np.zeros((2, 3, 3), np.uint8))
        >>> write_labels(f"{folder.name}/labels/one.png", np.ones((2, 3), np.uint8))
        >>> Folder(folder.name, classes=("ground", "tree"))[0].labels.tolist()
        [[1, 1, 1], [1, 1, 1]]
        >>> folder.cleanup()
    """

    def __init__(
        self,
        root: str | Path,
        split: str | None = None,
        *,
        classes: Sequence[str] | int | None = None,
        truth: bool = True,
    ) -> None:
        folder = Path(root)
        found = _classes(folder, classes)
        photographs = dict(_photographs(folder / "images"))
        if split is None:
            listed, names = folder / "images", sorted(photographs)
        else:
            listed = _list(folder, split)
            names = [_without_suffix(line) for line in read_lines(listed)]
        if not names:
            raise DatasetError(f"{listed}: there is no file ending in {', '.join(IMAGE_SUFFIXES)}")
        if missing := [name for name in names if name not in photographs]:
            more = f", nor for {len(missing) - 1} more" if len(missing) > 1 else ""
            raise DatasetError(f"{listed}: no photograph in images for {missing[0]}{more}")
        files = [Files(photographs[name], folder / "labels" / f"{name}.png") for name in names]
        if truth:
            demand((pair.labels for pair in files), asked_by=listed)
        super().__init__(names, files, found, truth=truth)


def _classes(folder: Path, classes: Sequence[str] | int | None) -> tuple[str, ...]:
    if classes is None:
        path = folder / "classes.txt"
        if not path.is_file():
            raise DatasetError(
                f"{path}: there is no such file; write the name of a class on each line"
            )
        return read_classes(path)
    if isinstance(classes, str) or not isinstance(classes, (int, Sequence)):
        raise TypeError(f"classes must be names or a number, got {classes!r}")
    if isinstance(classes, int):
        classes = [f"class {label}" for label in range(classes)]
    return checked_classes(classes, "classes")


def _photographs(folder: Path, inside: str = "") -> Iterator[tuple[str, Path]]:
    """Yields name and path of each photograph, those of the folders in it too."""
    files, folders = scan(folder)
    photographs = sorted(name for name in files if _without_suffix(name) != name)
    seen: dict[str, str] = {}
    for file in photographs:
        name = _without_suffix(file)
        if name in seen:
            raise DatasetError(f"{folder}: {seen[name]} and {file} have one name")
        seen[name] = file
        yield f"{inside}{name}", folder / file
    for name in folders:
        yield from _photographs(folder / name, f"{inside}{name}/")


def _without_suffix(name: str) -> str:
    suffix = PurePosixPath(name).suffix
    return name.removesuffix(suffix) if suffix.lower() in IMAGE_SUFFIXES else name


def _list(folder: Path, split: str) -> Path:
    for listed in (folder / f"{split}.txt", folder / "splits" / f"{split}.txt"):
        if listed.is_file():
            return listed
    raise DatasetError(f"{folder}: there is neither {split}.txt nor splits/{split}.txt in it")
