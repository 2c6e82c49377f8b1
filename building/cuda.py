"""Finds nvcc and decides which GPUs it compiles for."""

from __future__ import annotations

import functools
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

from . import say
from .ninja import word

DEFAULT_CUDA_HOME = Path("/usr/local/cuda")
# The library has machine code for these, and PTX of the newest. The driver compiles the PTX for
# later GPUs. GPUs of 8.9 run the code of 8.6: nvcc makes the same code for both, byte for byte.
DEFAULT_ARCHITECTURES = ("8.0", "8.6", "9.0a", "10.0", "12.0")


def find_nvcc() -> tuple[Path | None, str]:
    """Returns the path of nvcc, or None, and a list of all places where it was looked for."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    on_path = shutil.which("nvcc")
    candidates = [Path(home) / "bin" / "nvcc" for home in homes]
    candidates += [Path(on_path)] if on_path else []
    candidates += [DEFAULT_CUDA_HOME / "bin" / "nvcc"]
    looked = [str(c) for c in candidates] + ([] if on_path else ["nvcc on the PATH"])
    return next((c for c in candidates if c.is_file()), None), ", ".join(looked)


@functools.cache
def wanted_nvcc() -> Path | None:
    """Returns the nvcc to build with. If there is none, prints the reason and returns None."""
    choice = os.environ.get("ATROUSX_CUDA", "")
    if choice not in ("", "0", "1"):
        raise SystemExit(f"atrousx: ATROUSX_CUDA must be 0 or 1, got {choice!r}")
    if choice == "0":
        say("CUDA library: not built, ATROUSX_CUDA=0")
        return None
    nvcc, looked = find_nvcc()
    if nvcc is None:
        if choice == "1":
            raise SystemExit(f"atrousx: ATROUSX_CUDA=1, but no nvcc. Looked for: {looked}")
        say(f"CUDA library: not built, no nvcc. Looked for: {looked}")
    return nvcc


def cuda_architectures(nvcc: Path) -> list[str]:
    """Returns the architectures to compile for, in the notation of TORCH_CUDA_ARCH_LIST."""
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(",", ";").replace(" ", ";")
    if listed.strip(";"):
        return [a for a in listed.split(";") if a]
    import torch

    known = known_codes(nvcc)
    if torch.cuda.is_available():
        found = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
        return sorted({for_gpu(*capability, known) for capability in found})
    chosen = [a for a in DEFAULT_ARCHITECTURES if code(a) in known]
    # PTX of an architecture with a suffix runs only on that architecture, so it is not used.
    newest = max((i for i, a in enumerate(chosen) if a[-1].isdigit()), default=None)
    if newest is not None:
        chosen[newest] += "+PTX"
    return chosen


def known_codes(nvcc: Path) -> set[str]:
    """Returns the architectures that this nvcc can compile for: sm_80, ..."""
    command = [str(nvcc), "--list-gpu-code"]
    return set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())


def code(architecture: str) -> str:
    # nvcc lists architectures without suffixes.
    return "sm_" + re.sub(r"[.af]", "", architecture)


def for_gpu(major: int, minor: int, known: set[str]) -> str:
    """Returns the architecture for a GPU. If nvcc lacks it: the newest older one, with PTX."""
    # The special instructions of Hopper exist only in the target with the suffix "a".
    exact = f"{major}.{minor}" + ("a" if major == 9 else "")
    if code(exact) in known:
        return exact
    older = [int(c[3:]) for c in known if c[3:].isdigit() and int(c[3:]) < 10 * major + minor]
    if not older:
        raise SystemExit(f"atrousx: this nvcc compiles for no GPU of capability {major}.{minor}")
    return f"{max(older) // 10}.{max(older) % 10}+PTX"


def gencode_flags(architectures: list[str]) -> list[str]:
    flags = []
    for arch in architectures:
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", arch)
        if match is None:
            raise SystemExit(
                f"atrousx: TORCH_CUDA_ARCH_LIST holds {arch!r}; "
                "expected numbers like 8.6, 9.0a or 8.0+PTX"
            )
        number = match[1] + match[2] + match[3]
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if match[4]:
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def release(nvcc: Path) -> str:
    """Returns the CUDA version of an nvcc, for instance 13.0."""
    printed = subprocess.run([nvcc, "--version"], check=True, capture_output=True, text=True)
    version = re.search(r"release ([\d.]+)", printed.stdout)
    return version[1] if version else "unknown"


def host_flags(text: str) -> str:
    """Returns a variable such as LDFLAGS as options that nvcc passes to the host compiler."""
    # The quotes keep nvcc from splitting a flag at commas. A dollar needs more backslashes, because
    # nvcc reads it twice before the shell does.
    flags = [re.sub(r"([$`])", r"\\\\\1", flag) for flag in shlex.split(text)]
    return " ".join(word(f'-Xcompiler="{flag}"') for flag in flags)
