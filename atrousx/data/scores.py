"""Reads a network's scores from NumPy files."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .images import ImageError

SCORES_SUFFIXES = (".npy", ".npz")


def read_scores(path: str | Path, probabilities: bool = False) -> NDArray[np.float32]:
    """Reads floating scores ``[L, H, W]`` or ``[1, L, H, W]`` from .npy, or .npz with one array.

    Args:
        path: the file.
        probabilities: whether the file holds probabilities. Their logarithms are then returned.

    Returns:
        ``[L, H, W]`` float32: logits, or logarithms of probabilities.

    Raises:
        ImageError: there is no such file, it has no such array, or the values are not finite or not
            probabilities.
    """
    scores = _load(path)
    if scores.ndim == 4 and len(scores) == 1:
        scores = scores[0]
    if scores.ndim != 3 or not np.issubdtype(scores.dtype, np.floating) or scores.size == 0:
        raise ImageError(
            f"{path}: scores must be a floating array [labels, height, width], "
            f"found {scores.dtype} {list(scores.shape)}"
        )
    scores = scores.astype(np.float32)
    if not np.isfinite(scores).all():
        raise ImageError(f"{path}: scores must be finite, found NaN or infinity")
    if not probabilities:
        return scores
    if scores.min() < 0 or scores.max() > 1 or abs(scores.sum(0) - 1).max() > 0.01:
        raise ImageError(f"{path}: probabilities must lie in 0..1 and sum to 1 at every pixel")
    # 0 has no finite logarithm. The smallest normal number of float32 replaces it.
    smallest = np.finfo(np.float32).tiny
    logits: NDArray[np.float32] = np.log(np.maximum(scores, smallest))
    return logits


def _load(path: str | Path) -> NDArray[Any]:
    try:
        loaded = np.load(path, allow_pickle=False)
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror or error}") from error
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ImageError(f"{path}: not an array that NumPy can read") from error
    if isinstance(loaded, np.ndarray):
        return loaded
    with loaded:
        if len(loaded.files) != 1:
            names = ", ".join(loaded.files) or "none"
            raise ImageError(f"{path}: an .npz of scores must hold one array, found {names}")
        return np.asarray(loaded[loaded.files[0]])
