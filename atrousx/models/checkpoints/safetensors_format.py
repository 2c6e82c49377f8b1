"""Reads and writes safetensors files with the package of that name, which need not be installed."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from torch import Tensor

LENGTH_BYTES = 8  # the length of the header, before the header
MOST_HEADER_BYTES = 100_000_000


def is_safetensors(start: bytes, size: int) -> bool:
    """Whether a file of ``size`` bytes that begins with ``start`` is a safetensors file."""
    length = int.from_bytes(start[:LENGTH_BYTES], "little")
    is_object = start[LENGTH_BYTES : LENGTH_BYTES + 1] == b"{"
    return is_object and length <= min(size - LENGTH_BYTES, MOST_HEADER_BYTES)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the tensors of a file, and the strings beside them.

    Raises:
        ImportError: safetensors is not installed.
        ValueError: the file is damaged; the message says how, but does not name the file.
        OSError: the file cannot be opened.
    """
    package = _package("safetensors")
    try:
        with package.safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except OSError:
        raise
    except Exception as error:
        # SafetensorError, and what PyTorch raises for shapes without sense.
        raise ValueError(str(error)) from error


def write_safetensors(
    file: IO[bytes], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Writes tensors and strings to an open file.

    Raises:
        ImportError: safetensors is not installed.
    """
    package = _package("safetensors.torch")
    dense = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    file.write(package.save(dense, dict(metadata)))


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            "safetensors files need the package safetensors: pip install safetensors"
        ) from error
