"""What setup.py builds with, and the tests' host executor: ninja files, the search for CUDA."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
# The oldest PyTorch whose stable ABI is used: 2.11. Written once, read by every translation unit.
TORCH_TARGET_VERSION = "0x020b000000000000"


def say(message: str) -> None:
    # pip hides standard output of a build; standard error reaches the user with -v and on failure.
    print(f"atrousx: {message}", file=sys.stderr, flush=True)
