"""Writes ninja files and runs them.

A line of a ninja file passes two readers: ninja, whose escape is the dollar, and the shell that
runs the command. ``word`` and ``words`` quote for both, ``path`` for ninja alone.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path


def word(text: str | Path) -> str:
    """One word of a command line."""
    return shlex.quote(str(text)).replace("$", "$$")


def words(text: str) -> str:
    """A variable such as CXXFLAGS, which holds words as a shell reads them."""
    return " ".join(word(item) for item in shlex.split(text))


def define(name: str, text: str) -> str:
    """A compiler's option that defines a string."""
    return word(f'-D{name}="{text}"')


def path(text: str | Path) -> str:
    """A file of a build line."""
    return str(text).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def compile_rule(name: str, compiler: str, flags: str, after: str = "") -> list[str]:
    """How a source becomes an object, which also depends on the headers that it read."""
    return [
        f"rule {name}",
        f"  command = {compiler} -MMD -MF $out.d {flags} -c $in -o $out{after}",
        "  depfile = $out.d",
        "  deps = gcc",
        f"  description = {name} $in",
    ]


def link_rule(name: str, linker: str, libraries: str) -> list[str]:
    """How objects become a library."""
    return [
        f"rule {name}",
        f"  command = {linker} -shared $in -o $out {libraries}",
        "  description = link $out",
    ]


def build(target: str | Path, rule: str, sources: Iterable[str | Path]) -> str:
    return f"build {path(target)}: {rule} {' '.join(map(path, sources))}"


def program() -> str:
    """The ninja package before the system's: another version would start the build log over."""
    try:
        from ninja import BIN_DIR
    except ImportError:
        return "ninja"
    return shutil.which("ninja", path=BIN_DIR) or "ninja"


def run(
    directory: Path, lines: Iterable[str], quiet: bool = False
) -> subprocess.CompletedProcess[str]:
    """Writes the lines as the ninja file of a directory and builds what is out of date there."""
    directory.mkdir(parents=True, exist_ok=True)
    jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
    command = [program(), "-C", str(directory), "-j", jobs, *(["--quiet"] if quiet else [])]
    # Several processes may come here at once: the first one builds.
    with open(directory / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (directory / "build.ninja").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return subprocess.run(command, capture_output=quiet, text=True)


def tool(directory: Path, *arguments: str) -> str:
    """What a tool of ninja's prints about a directory that was built."""
    command = [program(), "-C", str(directory), "--quiet", "-t", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
