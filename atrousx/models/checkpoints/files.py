"""Reads weights from files of any origin without executing anything in them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .description import checked_network
from .safetensors_format import is_safetensors, read_safetensors
from .shards import file_in, read_shards
from .unpickling import load_pickled
from .unwrap import Unwrapped, unwrap
from .words import printable

# How files begin that people take for weights.
OTHER_FILES = {
    b"version https://git-lfs": "a pointer of Git LFS: fetch the file itself with git lfs pull",
    b"<": "a page in HTML or XML, perhaps the error message of a download",
    b"\x1f\x8b": "compressed by gzip: unpack it first",
    b"\x89HDF": "an HDF5 file, for instance of Keras",
    b"\x93NUMPY": "a NumPy array",
    b"GGUF": "a GGUF file",
}
# Under this string a safetensors file describes its network, in JSON.
NETWORK = "network"


class StoredWeights(dict[str, Tensor]):
    """Tensors by name, and what the file says of them.

    Attributes:
        network: version, arguments of the builder and preprocessing, from a checkpoint of
            ``atrousx train`` or a file of ``save_weights``; None for any other file.
        kind: how the file is written, for people.
        found: where in the file the tensors were.
    """

    network: Mapping[str, Any] | None = None
    kind: str = "a state_dict"
    found: Unwrapped = Unwrapped({})


def read_weights(given: object, *, ema: bool = False) -> StoredWeights:
    """Returns the tensors of a file or a state_dict by name, without a checkpoint's wrappings.

    ``ema`` asks for the running average of the weights in place of the weights.
    """
    if isinstance(given, StoredWeights):
        return given
    if isinstance(given, (str, os.PathLike)):
        origin = str(given)
        content, kind = _read(Path(given))
    elif isinstance(given, Mapping):
        origin, content, kind = "the state_dict", given, StoredWeights.kind
    else:
        raise TypeError(
            f"path_or_state_dict must be a path or a state_dict, got {type(given).__name__}"
        )
    found = unwrap(content, origin, ema)
    _check_kinds(found.tensors, origin)
    networks = (checked_network(value, origin) for value in _descriptions(content, found.path))
    result = StoredWeights(found.tensors)
    result.network = next((network for network in networks if network is not None), None)
    result.kind = kind
    ignored = tuple(name for name in found.ignored if not (result.network and name == NETWORK))
    result.found = found._replace(ignored=ignored)
    return result


def _check_kinds(tensors: Mapping[str, Tensor], origin: str) -> None:
    """Raises ValueError for tensors that no layer of a DeepLab can take."""
    for key, value in tensors.items():
        kinds = {
            "nested": value.is_nested,
            "quantized": value.is_quantized,
            "sparse": value.layout != torch.strided,
            "complex": value.is_complex(),
        }
        kind = next((kind for kind, is_so in kinds.items() if is_so), None)
        if kind is not None:
            raise ValueError(
                f"{origin} holds a {kind} tensor at {printable(key)}, weights must be dense numbers"
            )


def _descriptions(content: object, path: tuple[str, ...]) -> Iterator[object]:
    """Yields what stands under "network" at each level down to the tensors."""
    for name in (*path, ""):
        if not isinstance(content, Mapping):
            return
        yield content.get(NETWORK)
        content = content.get(name)


def _read(path: Path) -> tuple[object, str]:
    """Returns a file's content, and how it is written. The content decides that, not the name."""
    if not path.exists():
        raise FileNotFoundError(f"there is no weights file {path}")
    if path.is_dir():
        path = file_in(path)
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    with open(path, "rb") as file:
        start, size = file.read(64), os.fstat(file.fileno()).st_size
    if path.suffix == ".json" and not is_safetensors(start, size):
        return read_shards(path, lambda shard: _read_one(shard)[0]), "shards of an index"
    return _read_one(path)


def _read_one(path: Path) -> tuple[object, str]:
    with open(path, "rb") as file:
        start, size = file.read(64), os.fstat(file.fileno()).st_size
    if start.startswith(b"PK\x03\x04"):
        return load_pickled(path), "a file of torch.save"
    if is_safetensors(start, size):
        return _read_safetensors(path), "a safetensors file"
    for begin, kind in OTHER_FILES.items():
        if start.lstrip().startswith(begin):
            raise ValueError(f"{path} is not a weights file but {kind}")
    if path.suffix == ".safetensors" and not start.startswith(b"\x80"):
        # This says what is wrong with it.
        return _read_safetensors(path), "a safetensors file"
    return load_pickled(path), "a file of torch.save in its old format"


def _read_safetensors(path: Path) -> object:
    try:
        tensors, metadata = read_safetensors(path)
        network = json.loads(metadata[NETWORK]) if NETWORK in metadata else None
    except (ValueError, RecursionError, MemoryError) as error:
        told = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} cannot be read as a safetensors file: {told}") from error
    content: dict[str, object] = {**tensors}
    if network is not None:
        content[NETWORK] = network
    return content
