"""Reads files of torch.save without executing anything in them.

Checkpoints of training scripts hold more than tensors: arguments, paths, NumPy scalars, dates.
PyTorch's reader of weights refuses these. Here it gets a harmless stand-in for each such name, so
what a file calls by the name of ``pathlib.PosixPath`` is never pathlib's class. A stand-in ignores
all arguments, and its result is an empty object, list or dictionary. A name that is not in the
table is refused.
"""

from __future__ import annotations

import pickle
import pickletools
import re
import threading
import warnings
import zipfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from .words import printable

MOST_PICKLE_BYTES = 64_000_000


class StandIn:
    """An object of a file that is not needed; the class's name is what the file calls it."""

    def __new__(cls, *ignored: object, **named: object) -> StandIn:
        return super().__new__(cls)

    def __init__(self, *ignored: object, **named: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass

    def __hash__(self) -> int:
        return id(self)


# PyTorch's reader fills only lists and dictionaries themselves, not their subclasses.
class _Dictionary:
    def __new__(cls, *ignored: object) -> Any:
        return {}


class _List:
    def __new__(cls, *ignored: object) -> Any:
        return []


DICTIONARIES = (
    "collections.defaultdict",
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
)
LISTS = ("collections.deque",)
NUMPY_TYPES = (
    *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)),
    *("float16", "float32", "float64", "longdouble", "complex64", "complex128"),
    *("bool", "bool_", "str_", "bytes_", "ndarray", "dtype"),
)
PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path", "PurePath")
OBJECTS = (
    "argparse.Namespace",
    "types.SimpleNamespace",
    *(f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta", "timezone")),
    *(f"pathlib.{name}" for name in PATHS),
    *(f"pathlib._local.{name}" for name in PATHS),
    *(f"numpy.{name}" for name in NUMPY_TYPES),
    *(
        f"numpy.{core}.{name}"
        for core in ("core", "_core")
        for name in ("multiarray.scalar", "multiarray._reconstruct", "numeric._frombuffer")
    ),
    "decimal.Decimal",
    "fractions.Fraction",
    "uuid.UUID",
    "torch.torch_version.TorchVersion",
    *(
        f"builtins.{name}"
        for name in ("bool", "bytes", "dict", "float", "frozenset", "int", "list", "object")
    ),
    *(f"builtins.{name}" for name in ("range", "slice", "str", "tuple")),
)
# What an error calls a thing that a function of NumPy would make.
MADE = {"multiarray.scalar": "NumPy scalar", "multiarray._reconstruct": "NumPy array"}


def _stand_in(name: str) -> type:
    told = next((made for end, made in MADE.items() if name.endswith(end)), name)
    return type(told, (StandIn,), {})


ALLOWED: list[tuple[type, str]] = [
    *((_Dictionary, name) for name in DICTIONARIES),
    *((_List, name) for name in LISTS),
    *((_stand_in(name), name) for name in OBJECTS),
]
# PyTorch keeps its list of names for the whole process.
_lock = threading.Lock()


def load_pickled(path: Path) -> object:
    """Returns what a file of torch.save holds, on the CPU.

    Raises:
        ValueError: the file is damaged, another kind of file, or imports a name that is not in the
            table.
    """
    kind = _other_archive(path)
    if kind:
        raise ValueError(f"{path} is {kind}")
    with _lock, warnings.catch_warnings(), torch.serialization.safe_globals(list(ALLOWED)):
        # PyTorch warns of an unusual protocol before it refuses the content.
        warnings.simplefilter("ignore")
        try:
            # By the name of a path, PyTorch would read it as a safetensors file. It cannot see the
            # name of an open file, which it reads more slowly.
            with open(path, "rb") if path.suffix == ".safetensors" else nullcontext(path) as file:
                return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            # A damaged file makes PyTorch raise almost any error.
            raise ValueError(_refusal(path, error)) from error


def _other_archive(path: Path) -> str:
    """Returns what a zip archive is that torch.save did not write, else an empty string."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:
        return ""
    if any(name.endswith("/constants.pkl") for name in names):
        return (
            "a TorchScript archive, which is a program with its weights: read it with "
            "torch.jit.load, and save the result's state_dict() with torch.save"
        )
    if any(name.endswith(".json") and "model" in name for name in names):
        return "a program of torch.export, not a state_dict: save a state_dict() with torch.save"
    if names and all(name.endswith(".npy") for name in names):
        return "an archive of NumPy arrays, not a file of torch.save"
    return ""


def _refusal(path: Path, error: Exception) -> str:
    """Says in one sentence why a file was not read."""
    wanted = _wanted(path, error)
    if wanted:
        return (
            f"{path} wants to import {wanted}, which could execute code, so it was not read: "
            "save the state_dict in place of whole objects"
        )
    if isinstance(error, pickle.UnpicklingError):
        return (
            f"{path} is not a weights file of torch.save, or holds more than tensors, which is "
            "not read because loading it could execute code"
        )
    if not _pickle_of(path).startswith((b"\x80", b"PK")):
        return f"{path} is not a weights file, of torch.save or of safetensors"
    told = (str(error).strip().splitlines() or [""])[0][:200]
    return f"{path} cannot be read as a weights file: {printable(told) or type(error).__name__}"


def _wanted(path: Path, error: Exception) -> str:
    """Returns the name whose import was refused, as ``module.name``, or an empty string."""
    found = re.search(r"GLOBAL (.+?) (?:was not an allowed|whose module)", str(error))
    if found:
        return _named(found[1] if "." in found[1] else f"builtins.{found[1]}")
    if isinstance(error, pickle.UnpicklingError):
        allowed = {name for _, name in ALLOWED}
        names = (name for name in _imports(_pickle_of(path)) if name not in allowed)
        return _named(next(names, ""))
    return ""


def _named(name: str) -> str:
    """Returns a name as a program writes it, and as the file does where that differs."""
    module, _, last = name.rpartition(".")
    # Pickles name the module that implements os.
    return printable(f"os.{last} ({name})" if module in ("posix", "nt") else name)


def _pickle_of(path: Path) -> bytes:
    """Returns the pickle in a file. torch.save's begin with the byte 0x80, cut archives with PK."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                name = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
                with archive.open(name) as file:
                    return file.read(MOST_PICKLE_BYTES)
        with open(path, "rb") as file:
            return file.read(MOST_PICKLE_BYTES)
    except Exception:
        return b""


def _imports(data: bytes) -> list[str]:
    """Returns the names that a pickle of a newer protocol imports, as far as its text shows them.

    Such a pickle is refused in any case. Nothing is executed.
    """
    names: list[str] = []
    texts: list[str] = []
    try:
        for operation, value, _ in pickletools.genops(data):
            if operation.name == "STACK_GLOBAL" and len(texts) > 1:
                names.append(".".join(texts[-2:]))
            elif operation.name == "GLOBAL" and isinstance(value, str):
                names.append(value.replace(" ", "."))
            elif "UNICODE" in operation.name and isinstance(value, str):
                texts.append(value)
    except Exception:
        return names
    return names
