"""Finds files in folders that belong together by name."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from ._shared import CommandError


def listed(folder: Path, option: str, suffixes: Sequence[str]) -> list[Path]:
    """Returns a folder's files with one of the suffixes, by name; a name may occur only once."""
    try:
        found = [p for p in folder.iterdir() if p.suffix.lower() in suffixes]
    except OSError as error:
        raise CommandError(f"{option} {folder}: {error.strerror}") from error
    paths = sorted(found, key=lambda path: (path.stem, path.suffix))
    if not paths:
        raise CommandError(f"{option} {folder}: holds no file ending in {', '.join(suffixes)}")
    for one, other in itertools.pairwise(paths):
        if one.stem == other.stem:
            raise CommandError(f"{option} {folder}: {one.name} and {other.name} have one name")
    return paths


def partners(
    files: Sequence[Path], folder: Path, option: str, suffixes: Sequence[str], what: str
) -> list[Path]:
    """Returns, for each file, the file in ``folder`` with the same name."""
    by_stem = {path.stem: path for path in listed(folder, option, suffixes)}
    if missing := [path for path in files if path.stem not in by_stem]:
        more = f", nor for {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CommandError(f"{option} {folder}: no {what} for {missing[0].name}{more}")
    return [by_stem[path.stem] for path in files]


def size_text(shape: Sequence[int]) -> str:
    """Returns a shape ``[H, W]`` as text, width x height."""
    return f"{shape[1]}x{shape[0]}"


def check_scores_fit(scores: Path, size: Sequence[int], image: Path, of: Sequence[int]) -> None:
    """Raises CommandError if scores of ``size`` [h, w] are larger than the photograph [H, W]."""
    if size[0] > of[0] or size[1] > of[1]:
        raise CommandError(
            f"{scores} is {size_text(size)}, larger than {image}, which is {size_text(of)}"
        )
