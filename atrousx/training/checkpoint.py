"""Checkpoints: whole files or none, the last few and the best, and what a run needs to go on."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import _atomic

NAME = re.compile(r"iteration_(\d{8})\.pt")
BEST = "best.pt"


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read; the message names the file."""


def write_atomically(path: Path, content: Any) -> None:
    """Saves ``content`` with ``torch.save``, so that ``path`` never holds a part of a file.

    Raises:
        CheckpointError: the file cannot be written, for instance because the disk is full.
    """
    try:
        _atomic.write_atomically(path, partial(torch.save, content))
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{path}: cannot be written: {_atomic.reason(error)}") from error


class Checkpoints:
    """The checkpoints of one folder.

    Args:
        folder: gets ``iteration_00000100.pt`` and so on, and ``best.pt``.
        keep: how many of the last ones stay.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self.folder = folder
        self.keep = keep

    def files(self) -> list[Path]:
        """Returns the checkpoints from the oldest to the newest, without ``best.pt``."""
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if NAME.fullmatch(path.name))

    def save(self, iteration: int, content: dict[str, Any], is_best: bool = False) -> Path:
        """Writes a checkpoint, then removes those that are too old."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"{self.folder}: {error.strerror}") from error
        path = self.folder / f"iteration_{iteration:08d}.pt"
        write_atomically(path, content)
        if is_best:
            write_atomically(self.folder / BEST, content)
        for old in self.files()[: -self.keep]:
            old.unlink(missing_ok=True)
        return path

    def newest(self) -> dict[str, Any] | None:
        """Returns the newest checkpoint that can be read, or None if there is none.

        Warns of each damaged file that it passes over.

        Raises:
            CheckpointError: there are checkpoints, but none can be read.
        """
        files = self.files()
        for path in reversed(files):
            try:
                return read(path)
            except CheckpointError as error:
                warnings.warn(f"{error}; an older checkpoint is taken", stacklevel=2)
        if files:
            raise CheckpointError(f"{self.folder}: no checkpoint can be read")
        return None


def read(path: Path) -> dict[str, Any]:
    """Returns a checkpoint's content. Nothing in the file is executed.

    Raises:
        CheckpointError: the file cannot be read, or is no checkpoint of a training.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path}: cannot be read: {_atomic.reason(error)}") from error
    if not isinstance(content, dict) or "training" not in content:
        raise CheckpointError(f"{path}: no checkpoint of a training")
    return content


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Returns a model's ``state_dict`` on the CPU, as copies."""
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
