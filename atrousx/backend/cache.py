"""Keeps choices for later processes, in a small file in the user's cache folder."""

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

# The numbers of a choice, by machine and then by geometry.
Entries = dict[str, dict[str, Any]]


def location() -> Path | None:
    """Returns the path of the file, or None if ``ATROUSX_CACHE=0`` disables it."""
    chosen = os.environ.get(ENVIRONMENT, "")
    if chosen == "0":
        return None
    if chosen:
        path = Path(chosen).expanduser()
        return path / _FILE if path.is_dir() else path
    home = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification says to ignore relative paths.
    folder = Path(home) if os.path.isabs(home) else Path.home() / ".cache"
    return folder / "atrousx" / _FILE


def read(machine: str) -> dict[str, Any]:
    """Returns the entries of a machine; none if the file is missing or damaged."""
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
    """Adds entries to the file and keeps what other processes have added in the meantime.

    The lock prevents that one of two processes overwrites what the other one adds. The file is
    replaced as a whole, so that no reader sees a half-written file. If the folder is not writable,
    there is no error: only this process keeps the choices.
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
    except ImportError:  # Windows: entries of one of two concurrent writers may be lost
        yield
        return
    with open(path.with_name(f".{path.name}.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
