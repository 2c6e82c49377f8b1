"""Weights in several files: an index of shards in JSON, or the folder that holds it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath

from torch import Tensor

INDEX = ".safetensors.index.json"


def file_in(folder: Path) -> Path:
    """Returns the index of shards in a folder, else the folder's one .safetensors file.

    Raises:
        ValueError: the folder holds neither, or several.
    """
    for ending, name in ((INDEX, "indices of shards"), (".safetensors", ".safetensors files")):
        found = sorted(path for path in folder.iterdir() if path.name.endswith(ending))
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(path.name for path in found[:4])
            raise ValueError(f"{folder} is a folder with {len(found)} {name}, name one: {names}")
    raise ValueError(
        f"{folder} is not a file, and a folder without a .safetensors file or an index of shards"
    )


def read_shards(index: Path, read: Callable[[Path], object]) -> dict[str, Tensor]:
    """Returns the tensors of all shards that an index names.

    Raises:
        ValueError: the index is damaged; a shard lies outside the folder, is not there, or lacks a
            tensor. The message names it.
    """
    by_shard: dict[str, list[str]] = {}
    for key, shard in _weight_map(index).items():
        by_shard.setdefault(shard, []).append(key)
    for shard in by_shard:
        _check_place(index, shard)
    tensors: dict[str, Tensor] = {}
    for shard, keys in by_shard.items():
        content = read(index.parent / shard)
        for key in keys:
            value = content.get(key) if isinstance(content, Mapping) else None
            if not isinstance(value, Tensor):
                raise ValueError(f"{index} places {key!r} in {shard!r}, which does not hold it")
            tensors[key] = value
    return tensors


def _weight_map(index: Path) -> dict[str, str]:
    try:
        content = json.loads(index.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{index} cannot be read as an index of shards: {error}") from error
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ValueError(f'{index} is JSON without the "weight_map" of an index of shards')
    return names


def _check_place(index: Path, shard: str) -> None:
    for path in (PurePosixPath(shard), PureWindowsPath(shard)):
        if path.is_absolute() or path.drive or path.root or ".." in path.parts:
            raise ValueError(f"{index} names the shard {shard!r}, which leaves the folder")
    try:
        is_there = (index.parent / shard).is_file()
    except ValueError:
        is_there = False
    if not is_there:
        raise ValueError(f"{index} names the shard {shard!r}, which is not there")
