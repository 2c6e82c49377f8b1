"""Choices kept across processes, in a small file under the user's cache folder."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ENVIRONMENT = "ATROUSX_CACHE"
_FILE = "choices.json"
_FORMAT = 2

# By machine, then by geometry: a choice's numbers.
Entries = dict[str, dict[str, Any]]


def location() -> Path | None:
    """The file, or None where ``ATROUSX_CACHE=0`` says that there is none."""
    chosen = os.environ.get(ENVIRONMENT, "")
    if chosen == "0":
        return None
    if chosen:
        path = Path(chosen).expanduser()
        return path / _FILE if path.is_dir() else path
    home = os.environ.get("XDG_CACHE_HOME", "")
    # A relative path is to be ignored, by the specification of the XDG folders.
    folder = Path(home) if os.path.isabs(home) else Path.home() / ".cache"
    return folder / "atrousx" / _FILE


def read(machine: str) -> dict[str, Any]:
    """A machine's entries; none where there is no file or a damaged one."""
    path = location()
    return {} if path is None else _read(path).get(machine, {})


def _read(path: Path) -> Entries:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    machines = content.get("machines") if isinstance(content, dict) else None
    if not isinstance(machines, dict) or content.get("format") != _FORMAT:
        return {}
    return {name: entries for name, entries in machines.items() if isinstance(entries, dict)}


def write(machine: str, entries: Mapping[str, Any]) -> None:
    """Adds entries to the file, and keeps what other processes have added meanwhile.

    Without a lock two processes that write at once might lose what one of them added; replaced as
    a whole the file is never half of one. A folder that cannot be written to is no error: choices
    then are kept by the process alone.
    """
    path = location()
    if path is None or not entries:
        return
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path):
            content = _read(path)
            content.setdefault(machine, {}).update(entries)
            _replace(path, json.dumps({"format": _FORMAT, "machines": content}, indent=0))


def _replace(path: Path, text: str) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # Windows: what one of two processes adds may be lost there
        yield
        return
    with open(path.with_name(f".{path.name}.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
