"""Reads weights from files of any origin without executing anything in them."""

from __future__ import annotations

import importlib
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class StoredWeights(dict[str, Tensor]):
    """Tensors by name, and what a checkpoint of ``atrousx train`` says of their network.

    Attributes:
        network: version, arguments of the builder and preprocessing; None for any other file.
    """

    network: Mapping[str, Any] | None = None


def read_weights(given: object) -> StoredWeights:
    """Returns the tensors of a file or a state_dict by name, without a checkpoint's wrappings."""
    if isinstance(given, StoredWeights):
        return given
    if isinstance(given, (str, os.PathLike)):
        origin, weights = str(given), _read(Path(given))
    elif isinstance(given, Mapping):
        origin, weights = "the state_dict", given
    else:
        raise TypeError(
            f"path_or_state_dict must be a path or a state_dict, got {type(given).__name__}"
        )
    network = weights.get("network") if isinstance(weights, Mapping) else None
    for wrapping in ("model", "model_state", "state_dict"):
        if isinstance(weights, Mapping) and isinstance(weights.get(wrapping), Mapping):
            weights = weights[wrapping]
    if not isinstance(weights, Mapping):
        raise ValueError(f"{origin} holds a {type(weights).__name__}, not a state_dict")
    for key, value in weights.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"{origin} must hold tensors by name, got {type(value).__name__} at {key!r}"
            )
    if weights and all(key.startswith("module.") for key in weights):
        weights = {key.removeprefix("module."): value for key, value in weights.items()}
    result = StoredWeights(weights)
    result.network = network if isinstance(network, Mapping) else None
    return result


def _read(path: Path) -> object:
    if not path.exists():
        raise FileNotFoundError(f"there is no weights file {path}")
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is not a weights file of torch.save, or holds more than tensors, which is "
            "not read because loading it could execute code"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read as a weights file: {error}") from error


def _read_safetensors(path: Path) -> object:
    try:
        safetensors = importlib.import_module("safetensors")
        reader = importlib.import_module("safetensors.torch")
    except ImportError as error:
        raise ImportError(
            f"{path} needs the package safetensors to be read: pip install safetensors"
        ) from error
    try:
        return reader.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} cannot be read as a safetensors file: {error}") from error
