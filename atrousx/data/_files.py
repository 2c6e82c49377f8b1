"""Finds the files of a dataset, and says which are missing before anything is read."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from .dataset import DatasetError


def read_lines(path: Path) -> list[str]:
    """Returns the lines of a text file that are not empty, without the space around them.

    Raises:
        DatasetError: the file cannot be read, or has no such line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: not a text file in UTF-8") from error
    lines = [line.strip() for line in text.splitlines()]
    if not any(lines):
        raise DatasetError(f"{path}: holds no line of text")
    return [line for line in lines if line]


def read_classes(path: Path) -> tuple[str, ...]:
    """Returns the names of the classes in a file of one line for each.

    Raises:
        DatasetError: the file cannot be read, has no line, or has too many.
    """
    return checked_classes(read_lines(path), str(path))


def checked_classes(names: Iterable[str], where: str) -> tuple[str, ...]:
    classes = tuple(names)
    if not 1 <= len(classes) <= 255:
        raise DatasetError(f"{where}: must name 1 to 255 classes, found {len(classes)}")
    return classes


def scan(folder: Path) -> tuple[set[str], list[str]]:
    """Returns the names of a folder's files and, sorted, of its folders.

    Raises:
        DatasetError: the folder cannot be read.
    """
    files, folders = set(), []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    folders.append(entry.name)
                else:
                    files.add(entry.name)
    except OSError as error:
        raise DatasetError(f"{folder}: {error.strerror or error}") from error
    return files, sorted(folders)


def demand(paths: Iterable[Path], asked_by: Path) -> None:
    """Raises DatasetError if a file is missing. Each folder is read once; no file is touched."""
    present: dict[Path, set[str]] = {}
    missing = []
    for path in paths:
        folder = path.parent
        if folder not in present:
            present[folder] = scan(folder)[0]
        if path.name not in present[folder]:
            missing.append(path)
    if missing:
        more = f", nor are {len(missing) - 1} more files" if len(missing) > 1 else ""
        raise DatasetError(f"{missing[0]}: there is no such file{more}; {asked_by} asks for it")
