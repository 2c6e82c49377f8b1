"""Weights that people have on disk, into the models of this package."""

from __future__ import annotations

import importlib
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

SOURCES = ("deeplab_v3", "resnet")
# Batch normalisation's counters: files from before PyTorch 0.4.1 lack them, inference ignores them.
OPTIONAL = ".num_batches_tracked"


@dataclass(frozen=True)
class LoadReport:
    """What :func:`load_weights` did: keys of the model that were filled and that were not.

    Attributes:
        source: what the weights were recognised as, "deeplab_v3" or "resnet".
        loaded: keys of the model that took a value.
        missing: keys of the model that the weights lack; they keep the values they had.
        left_over: keys of the weights that the model has no place for.

    Example:
        >>> from atrousx.models import LoadReport
        >>> print(LoadReport("resnet", ("backbone.conv1.weight",), (), ("fc.weight", "fc.bias")))
        1 tensors loaded, recognised as resnet
        not in the model, ignored: fc.weight, fc.bias
    """

    source: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    left_over: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} tensors loaded, recognised as {self.source}"]
        if self.missing:
            lines.append(f"not in the weights, left as they were: {_abridged(self.missing)}")
        if self.left_over:
            lines.append(f"not in the model, ignored: {_abridged(self.left_over)}")
        return "\n".join(lines)


def load_weights(
    model: nn.Module,
    path_or_state_dict: str | os.PathLike[str] | Mapping[str, Tensor],
    source: Literal["auto", "deeplab_v3", "resnet"] = "auto",
) -> LoadReport:
    """Loads published or own weights into a model, all or nothing.

    Two kinds are understood. "deeplab_v3": a whole model, as torchvision publishes
    ``deeplabv3_resnet50`` and ``deeplabv3_resnet101`` (for ``layout="torchvision"``), or the
    ``state_dict`` of a model of this package. The auxiliary classifier may be absent from either
    side. "resnet": torchvision's ImageNet ``resnet50`` and ``resnet101``, into ``model.backbone``;
    their classifier ``fc`` is ignored. A checkpoint that holds either under "model", as
    torchvision's training scripts write, is unwrapped.

    Files are read with ``weights_only=True``, so that nothing in an untrusted one is executed.
    Values are converted to the dtype and device of the model.

    Args:
        model: a DeepLab of this package.
        path_or_state_dict: a file of ``torch.save``, a ``.safetensors`` file (needs the package
            safetensors), or a state_dict.
        source: "deeplab_v3", "resnet", or "auto" to recognise it by its keys.

    Returns:
        What was recognised and loaded, what stayed as it was, what was ignored.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: a ``.safetensors`` file, and safetensors is not installed.
        TypeError: neither a path nor a state_dict.
        ValueError: the file is not a state_dict or holds more than tensors, is not recognised, or
            does not fit the model, with the keys and shapes that differ. The model is unchanged.

    Example:
        >>> import atrousx
        >>> model = atrousx.models.deeplab_v3(layout="torchvision")
        >>> report = atrousx.models.load_weights(model, model.state_dict())
        >>> print(report)
        362 tensors loaded, recognised as deeplab_v3
    """
    if source not in ("auto", *SOURCES):
        raise ValueError(f"source must be 'auto', 'deeplab_v3' or 'resnet', got {source!r}")
    weights = _state_dict(path_or_state_dict)
    recognised = _recognise(weights)
    if recognised is None or source not in ("auto", recognised):
        wanted = "a DeepLab v3 or a ResNet" if source == "auto" else f"source={source!r}"
        raise ValueError(f"the weights are not those of {wanted}: {_abridged(tuple(weights))}")
    if recognised == "resnet":
        weights = {f"backbone.{k}" if not k.startswith("fc.") else k: v for k, v in weights.items()}
    report = _compare(model, weights, recognised)
    model.load_state_dict({key: weights[key] for key in report.loaded}, strict=False)
    return report


def _compare(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> LoadReport:
    """The report of loading ``weights``, or the error that says why they do not fit."""
    own = model.state_dict()
    loaded = tuple(key for key in own if key in weights)
    missing = tuple(key for key in own if key not in weights)
    left_over = tuple(key for key in weights if key not in own)
    for key in loaded:
        if own[key].shape != weights[key].shape:
            raise ValueError(
                f"{key} has shape {tuple(weights[key].shape)} in the weights "
                f"and {tuple(own[key].shape)} in the model"
            )
    # What either side may lack: the auxiliary classifier, or all that a classifier does not have.
    needed = ("backbone.", "classifier.") if source == "deeplab_v3" else ("backbone.",)
    ignorable = "aux_classifier." if source == "deeplab_v3" else "fc."
    lacking = tuple(k for k in missing if k.startswith(needed) and not k.endswith(OPTIONAL))
    unplaced = tuple(k for k in left_over if not k.startswith(ignorable))
    if lacking or unplaced:
        parts = [f"it lacks {_abridged(lacking)}"] if lacking else []
        parts += [f"the model has no place for {_abridged(unplaced)}"] if unplaced else []
        raise ValueError(f"the weights ({source}) do not fit the model: {'; '.join(parts)}")
    return LoadReport(source, loaded, missing, left_over)


def _recognise(weights: Mapping[str, Tensor]) -> str | None:
    if "backbone.conv1.weight" in weights and "classifier.0.convs.0.0.weight" in weights:
        return "deeplab_v3"
    if "conv1.weight" in weights and "layer4.0.conv3.weight" in weights:
        return "resnet"
    return None


def _state_dict(given: object) -> Mapping[str, Tensor]:
    """The tensors by name, from wherever they come."""
    if isinstance(given, (str, os.PathLike)):
        origin, weights = str(given), _read(Path(given))
    elif isinstance(given, Mapping):
        origin, weights = "the state_dict", given
    else:
        raise TypeError(
            f"path_or_state_dict must be a path or a state_dict, got {type(given).__name__}"
        )
    if isinstance(weights, Mapping) and isinstance(weights.get("model"), Mapping):
        weights = weights["model"]
    if not isinstance(weights, Mapping):
        raise ValueError(f"{origin} holds a {type(weights).__name__}, not a state_dict")
    for key, value in weights.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"{origin} must hold tensors by name, got {type(value).__name__} at {key!r}"
            )
    return weights


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


def _abridged(keys: tuple[str, ...], shown: int = 4) -> str:
    more = f" and {len(keys) - shown} more" if len(keys) > shown else ""
    return ", ".join(map(str, keys[:shown])) + more
