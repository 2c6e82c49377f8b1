"""The files of the source tree."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def source_files() -> list[str]:
    """What git tracks, and new files that it does not ignore, by their names from the root."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    # git lists what was deleted and not committed, too.
    return [name for name in listed if (ROOT / name).is_file()]
