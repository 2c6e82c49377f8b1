"""Compiles CUDA code with ordinary g++, to run on the host.

:func:`load` gives a Python module of the executor itself, "plain" or "sanitized", the latter with
AddressSanitizer and UBSan; no torch is imported, only its headers are used. :func:`build_device`
gives the library that ``device.py`` loads into PyTorch: the launchers and kernels of ``csrc`` for a
device in host memory.
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
SANITIZERS = "-fsanitize=address,undefined -fno-sanitize-recover=all"
FLAGS = {
    "plain": "-O2",
    # -g1: lines and names are all that a report needs, and compile in two thirds of the time.
    "sanitized": f"-O1 -g1 {SANITIZERS}",
}
EXECUTOR = ["access", "emulator", "matrices", "memory", "stack_switch"]
MODULE_SOURCES = [*EXECUTOR, *sorted(s.stem for s in HERE.glob("*bindings.cpp"))]
# Each load and store calls access.cpp, which stands for the flag's own runtime.
CHECKED = "-fsanitize=thread"
DEVICE_FLAGS = {
    "plain": "-O1",
    "coverage": "-O0 --coverage -fprofile-update=single",
    "undefined": "-O1 -g1 -fsanitize=undefined",
}


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


def build_module(variant: str) -> Path:
    """The Python module's path, compiled as far as anything has changed."""
    import pybind11

    directory = ROOT / "build" / f"emulator-{variant}"
    includes = [
        f"-I{quoted(HERE)}",
        f"-I{quoted(ROOT / 'csrc')}",
        f"-isystem {quoted(torch_folder() / 'include')}",
        f"-isystem {quoted(pybind11.get_include())}",
        f"-isystem {quoted(sysconfig.get_path('include'))}",
    ]
    output = f"{NAME}{sysconfig.get_config_var('EXT_SUFFIX')}"
    lines = [
        *compile_rule("cxx", f"-Wall -Wextra {FLAGS[variant]} {' '.join(includes)}"),
        "rule link",
        f"  command = g++ -shared -Wl,-Bsymbolic {FLAGS[variant]} $in -o $out",
        *(f"build {name}.o: cxx {target(HERE / name)}.cpp" for name in MODULE_SOURCES),
        f"build {output}: link {' '.join(f'{name}.o' for name in MODULE_SOURCES)}",
    ]
    run_ninja(directory, lines)
    return directory / output


def load(variant: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(NAME, build_module(variant))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
        f"-I{quoted(HERE)} -I{quoted(ROOT / 'csrc')} -isystem {quoted(torch / 'include')} "
        f"-isystem {quoted(torch / 'include/torch/csrc/api/include')}"
    )
    flags = DEVICE_FLAGS[variant]
    plain = [*EXECUTOR, "runtime", "device"]
    launchers = sorted((ROOT / "csrc").rglob("*_cuda.cu"))
    objects = [f"{name}.o" for name in [*plain, "planted", *(s.stem for s in launchers)]]
    libraries = f"-L{quoted(torch / 'lib')} -ltorch_cpu -ltorch -lc10 -ldl"
    lines = [
        *compile_rule("host", f"-O2 -Wall -Wextra {includes}"),
        *compile_rule("launcher", f"-Wall -Wextra {flags} {CHECKED} {stable} {includes}"),
        "rule link",
        # Not with CHECKED: its runtime is what access.cpp stands for.
        f"  command = g++ -shared -Wl,-Bsymbolic {flags} $in -o $out {libraries}",
        *(f"build {name}.o: host {target(HERE / name)}.cpp" for name in plain),
        f"build planted.o: launcher {target(HERE / 'planted.cpp')}",
        *(f"build {s.stem}.o: launcher {target(s)}" for s in launchers),
        f"build libemulated_device.so: link {' '.join(objects)}",
    ]
    run_ninja(directory, lines)
    return directory / "libemulated_device.so"


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
