"""Compiles CUDA code with ordinary g++, to run on the host.

:func:`build_device` gives the library that ``device.py`` loads into PyTorch: the launchers and
kernels of ``csrc`` for a device in host memory, and the executor that runs them.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"
# Each load and store calls access.cpp, which stands for the flag's own runtime. AddressSanitizer
# cannot be had beside it, and is not missed: these calls see every access, too.
CHECKED = "-fsanitize=thread"
DEVICE_FLAGS = {
    "plain": "-O1",
    "coverage": "-O1 --coverage -fprofile-update=single",
    # -g1: lines and names are all that a report needs.
    "undefined": "-O1 -g1 -fsanitize=undefined -fno-sanitize-recover=all",
}
# Plain C++ on PyTorch's whole interface, and CUDA code on the stable one.
HOST_SOURCES = [
    *("access", "emulator", "matrices", "memory", "stack_switch"),
    *("runtime", "device", "plans"),
]
PLANTED_SOURCES = ["planted", "planted_kernels", "ptx"]


def torch_folder() -> Path:
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def quoted(path: Path | str) -> str:
    """As a shell takes it; ninja's own escape is the dollar."""
    return "'" + str(path).replace("$", "$$") + "'"


def target(path: Path | str) -> str:
    """As ninja takes a path."""
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def run_ninja(directory: Path, lines: list[str]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
    command = ["ninja", "-C", str(directory), "--quiet", "-j", jobs]
    # Test processes may come here at once: the first one builds.
    with open(directory / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (directory / "build.ninja").write_text("\n".join(lines) + "\n")
        result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"the host executor does not compile:\n{result.stdout[-6000:]}")


def compile_rule(name: str, flags: str) -> list[str]:
    return [
        f"rule {name}",
        f"  command = g++ -MMD -MF $out.d -std=c++20 -fPIC {flags} -c -x c++ $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
    ]


def build_device(variant: str) -> Path:
    """The library's path, compiled as far as anything has changed."""
    directory = ROOT / "build" / f"emulated-device-{variant}"
    torch = torch_folder()
    # The stable interface for the launchers, as setup.py compiles them; PyTorch's whole one for the
    # device. Kernels take what the grid leaves in turn: a small largest grid makes them do it.
    stable = (
        "-DTORCH_TARGET_VERSION=0x020b000000000000 -DATROUSX_CUDA_KEY=PrivateUse1 "
        "-DATROUSX_MOST_BLOCKS=3"
    )
    includes = (
        f"-I{quoted(HERE)} -I{quoted(CSRC)} -isystem {quoted(torch / 'include')} "
        f"-isystem {quoted(torch / 'include/torch/csrc/api/include')}"
    )
    flags = DEVICE_FLAGS[variant]
    # Static variables in templates stay this library's own, whatever nvcc's library exports.
    local = "-fno-gnu-unique"
    launchers = {
        **{f"{s.relative_to(CSRC)}.o": s for s in sorted(CSRC.rglob("*.cu"))},
        **{f"{name}.o": HERE / f"{name}.cpp" for name in PLANTED_SOURCES},
    }
    objects = [*(f"{name}.o" for name in HOST_SOURCES), *launchers]
    libraries = f"-L{quoted(torch / 'lib')} -ltorch_cpu -ltorch -lc10 -ldl"
    lines = [
        *compile_rule("host", f"-O2 -Wall -Wextra {includes}"),
        *compile_rule("launcher", f"-Wall -Wextra {flags} {CHECKED} {local} {stable} {includes}"),
        "rule link",
        # Not with CHECKED: its runtime is what access.cpp stands for.
        f"  command = g++ -shared -Wl,-Bsymbolic {flags} $in -o $out {libraries}",
        *(f"build {name}.o: host {target(HERE / name)}.cpp" for name in HOST_SOURCES),
        *(f"build {object}: launcher {target(s)}" for object, s in launchers.items()),
        f"build libemulated_device.so: link {' '.join(objects)}",
    ]
    run_ninja(directory, lines)
    return directory / "libemulated_device.so"
