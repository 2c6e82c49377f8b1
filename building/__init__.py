"""Build code of setup.py and of the tests' CUDA emulator: ninja files, the search for CUDA."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
# The oldest PyTorch whose stable ABI is used: 2.11. Every translation unit gets this value.
TORCH_TARGET_VERSION = "0x020b000000000000"


def say(message: str) -> None:
    # pip hides a build's standard output. It shows standard error with -v and on failure.
    print(f"atrousx: {message}", file=sys.stderr, flush=True)
