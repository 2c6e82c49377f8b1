"""Compiles the CUDA kernels, with ordinary g++, into a Python module that runs them on the host.

Two builds: "plain", and "sanitized" with AddressSanitizer and UBSan, which must be loaded into a
Python started with :func:`sanitizer_environment`. No torch is imported: only its headers are used.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
NAME = "atrousx_emulated"
FLAGS = {
    "plain": "-O2",
    # -g1: lines and names are all that a report needs, and compile in two thirds of the time.
    "sanitized": "-O1 -g1 -fsanitize=address,undefined -fno-sanitize-recover=all",
}


def build(variant: str) -> Path:
    """The module's path, compiled as far as anything has changed."""
    directory = ROOT / "build" / f"emulator-{variant}"
    directory.mkdir(parents=True, exist_ok=True)
    import pybind11  # here, for those who only look for other tests

    torch_spec = importlib.util.find_spec("torch")
    assert torch_spec is not None
    assert torch_spec.origin is not None
    includes = [
        f"-I{HERE}",
        f"-I{ROOT / 'csrc'}",
        f"-isystem {Path(torch_spec.origin).parent / 'include'}",
        f"-isystem {pybind11.get_include()}",
        f"-isystem {sysconfig.get_path('include')}",
    ]
    flags = f"-std=c++20 -fPIC -Wall -Wextra {FLAGS[variant]} {' '.join(includes)}"
    output = directory / f"{NAME}{sysconfig.get_config_var('EXT_SUFFIX')}"
    sources = sorted(HERE.glob("*.cpp"))
    objects = " ".join(f"{s.stem}.o" for s in sources)
    lines = [
        "rule cxx",
        f"  command = g++ -MMD -MF $out.d {flags} -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = g++ -shared {FLAGS[variant]} $in -o $out",
        *(f"build {s.stem}.o: cxx {s}" for s in sources),
        f"build {output.name}: link {objects}",
    ]
    command = ["ninja", "-C", str(directory), "--quiet"]
    # Test processes may come here at once: the first one builds.
    with open(directory / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (directory / "build.ninja").write_text("\n".join(lines) + "\n")
        result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"the host executor does not compile:\n{result.stdout[-6000:]}")
    return output


def load(variant: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(NAME, build(variant))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_sanitized(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Python with the sanitizers' runtimes loaded first, as they require."""
    runtimes = [
        subprocess.run(
            ["g++", f"-print-file-name={name}"], check=True, capture_output=True, text=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(runtimes),
        "ATROUSX_EMULATOR": "sanitized",
        # Python itself frees little at exit. An alternate signal stack clashes with fibers.
        "ASAN_OPTIONS": "detect_leaks=0:use_sigaltstack=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
