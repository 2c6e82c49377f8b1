"""Reads and writes safetensors files: a header in JSON, then the tensors' bytes.

The format has three parts: the header's length as 8 bytes, the header, the data. The header gives
each tensor's dtype, shape and place in the data, and strings under ``__metadata__``.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
LENGTH_BYTES = 8
MOST_HEADER_BYTES = 100_000_000
METADATA = "__metadata__"


def is_safetensors(start: bytes, size: int) -> bool:
    """Whether a file of ``size`` bytes that begins with ``start`` is a safetensors file."""
    length = int.from_bytes(start[:LENGTH_BYTES], "little")
    is_object = start[LENGTH_BYTES : LENGTH_BYTES + 1] == b"{"
    return is_object and length <= min(size - LENGTH_BYTES, MOST_HEADER_BYTES)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the tensors of a file, and the strings beside them.

    Raises:
        ValueError: the file is damaged; the message says how, but does not name the file.
        OSError: the file cannot be opened.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        header = _read_header(file, size)
        metadata = header.pop(METADATA, {})
        if not isinstance(metadata, dict):
            raise ValueError(f"its {METADATA} is not an object")
        start = file.tell()
        places = {key: _checked(key, entry, size - start) for key, entry in header.items()}
        end = max((place[2][1] for place in places.values()), default=0)
        if end != size - start:
            raise ValueError(f"its header tells {end} bytes of data, it has {size - start}")
        tensors = {key: _read_tensor(file, start, *place) for key, place in places.items()}
    return tensors, {key: str(value) for key, value in metadata.items()}


Place = tuple[torch.dtype, list[int], tuple[int, int]]


def _read_header(file: IO[bytes], size: int) -> dict[str, Any]:
    start = file.read(LENGTH_BYTES + 1)
    if not is_safetensors(start, size):
        raise ValueError("it does not begin with the length of a header and the header")
    length = int.from_bytes(start[:LENGTH_BYTES], "little")
    text = start[LENGTH_BYTES:] + file.read(length - 1)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise ValueError("its header is not an object")
    return header


def _checked(key: str, entry: object, available: int) -> Place:
    """Returns dtype, shape and place of a tensor, which lies within the data."""
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise ValueError(f"the header has no dtype, shape and data_offsets for {key!r}")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in DTYPES:
        raise ValueError(f"{key!r} has the unknown dtype {entry['dtype']!r}")
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        raise ValueError(f"{key!r} has no valid shape or data_offsets")
    dtype, (begin, end) = DTYPES[entry["dtype"]], offsets
    if not begin <= end <= available:
        raise ValueError(f"{key!r} lies outside the data: the file is cut short or damaged")
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{key!r} of shape {tuple(shape)} has {end - begin} bytes")
    return dtype, shape, (begin, end)


def _are_counts(values: object) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**62 for v in values)


def _read_tensor(
    file: IO[bytes], start: int, dtype: torch.dtype, shape: list[int], place: tuple[int, int]
) -> Tensor:
    begin, end = place
    if begin == end:
        return torch.empty(shape, dtype=dtype)
    file.seek(start + begin)
    data = bytearray(end - begin)
    if file.readinto(data) != len(data):  # type: ignore[attr-defined]
        raise ValueError("it became shorter while it was read")
    if dtype == torch.bool:
        # Any byte but 0 is True. A bool of another byte would be undefined.
        return torch.frombuffer(data, dtype=torch.uint8).ne(0).view(shape)
    return torch.frombuffer(data, dtype=dtype).view(shape)


def write_safetensors(
    file: IO[bytes], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Writes tensors and strings to an open file.

    Raises:
        ValueError: the format has no name for a tensor's dtype.
    """
    header: dict[str, Any] = {METADATA: dict(metadata)}
    begin = 0
    for key, value in tensors.items():
        if value.dtype not in NAMES:
            raise ValueError(f"{key} is {value.dtype}, which a safetensors file cannot hold")
        end = begin + value.numel() * value.itemsize
        header[key] = {"dtype": NAMES[value.dtype], "shape": list(value.shape)}
        header[key]["data_offsets"] = [begin, end]
        begin = end
    text = json.dumps(header).encode()
    # The data begins at a multiple of 8 bytes.
    text += b" " * (-len(text) % LENGTH_BYTES)
    file.write(len(text).to_bytes(LENGTH_BYTES, "little"))
    file.write(text)
    for value in tensors.values():
        if value.numel():
            flat = value.detach().cpu().contiguous().flatten()
            file.write(flat.view(torch.uint8).numpy().data)
