"""Writes ninja files and runs them.

Two programs read a line of a ninja file: first ninja, whose escape character is the dollar, then
the shell that runs the command. ``word`` and ``words`` quote for both, ``path`` only for ninja.
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
    """Returns a text as one quoted word of a command line."""
    return shlex.quote(str(text)).replace("$", "$$")


def words(text: str) -> str:
    """Returns the quoted words of a variable such as CXXFLAGS, split as a shell splits them."""
    return " ".join(word(item) for item in shlex.split(text))


def define(name: str, text: str) -> str:
    """Returns a compiler option that defines a macro as a string."""
    return word(f'-D{name}="{text}"')


def path(text: str | Path) -> str:
    """Returns a path as a quoted file name of a build line."""
    return str(text).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def compile_rule(name: str, compiler: str, flags: str, after: str = "") -> list[str]:
    """Returns the rule that compiles a source. The object also depends on the headers it read."""
    return [
        f"rule {name}",
        f"  command = {compiler} -MMD -MF $out.d {flags} -c $in -o $out{after}",
        "  depfile = $out.d",
        "  deps = gcc",
        f"  description = {name} $in",
    ]


def link_rule(name: str, linker: str, libraries: str) -> list[str]:
    """Returns the rule that links objects to a library."""
    return [
        f"rule {name}",
        f"  command = {linker} -shared $in -o $out {libraries}",
        "  description = link $out",
    ]


def build(target: str | Path, rule: str, sources: Iterable[str | Path]) -> str:
    return f"build {path(target)}: {rule} {' '.join(map(path, sources))}"


def program() -> str:
    """Returns the ninja of the Python package, or else the system's.

    The order is fixed because another version of ninja would discard the build log.
    """
    try:
        from ninja import BIN_DIR
    except ImportError:
        return "ninja"
    return shutil.which("ninja", path=BIN_DIR) or "ninja"


def run(
    directory: Path, lines: Iterable[str], quiet: bool = False
) -> subprocess.CompletedProcess[str]:
    """Writes the lines to the ninja file of a directory and builds everything out of date there."""
    directory.mkdir(parents=True, exist_ok=True)
    jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
    command = [program(), "-C", str(directory), "-j", jobs, *(["--quiet"] if quiet else [])]
    # Several processes may call this at the same time. The lock lets only one build.
    with open(directory / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (directory / "build.ninja").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return subprocess.run(command, capture_output=quiet, text=True)


def tool(directory: Path, *arguments: str) -> str:
    """Returns the output of a ninja tool for a directory that was built."""
    command = [program(), "-C", str(directory), "--quiet", "-t", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
