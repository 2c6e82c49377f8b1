"""Compiles CUDA code with ordinary g++, to run on the host.

:func:`build_device` gives the library that ``device.py`` loads into PyTorch: the launchers and
kernels of ``csrc`` for a device in host memory, and the executor that runs them.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from building import CSRC, ROOT, TORCH_TARGET_VERSION, ninja

HERE = Path(__file__).resolve().parent
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


def compile_rule(name: str, flags: str) -> list[str]:
    return ninja.compile_rule(name, "g++", f"-std=c++20 -fPIC {flags} -x c++")


def build_device(variant: str) -> Path:
    """The library's path, compiled as far as anything has changed."""
    directory = ROOT / "build" / f"emulated-device-{variant}"
    torch = torch_folder()
    # The stable interface for the launchers, as setup.py compiles them; PyTorch's whole one for the
    # device. Kernels take what the grid leaves in turn: a small largest grid makes them do it.
    stable = (
        f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION} -DATROUSX_CUDA_KEY=PrivateUse1 "
        "-DATROUSX_MOST_BLOCKS=3"
    )
    folders = (torch / "include", torch / "include/torch/csrc/api/include")
    includes = " ".join(
        [f"-I{ninja.word(folder)}" for folder in (HERE, CSRC)]
        + [f"-isystem {ninja.word(folder)}" for folder in folders]
    )
    flags = DEVICE_FLAGS[variant]
    # Static variables in templates stay this library's own, whatever nvcc's library exports.
    local = "-fno-gnu-unique"
    launchers = {
        **{f"{s.relative_to(CSRC)}.o": s for s in sorted(CSRC.rglob("*.cu"))},
        **{f"{name}.o": HERE / f"{name}.cpp" for name in PLANTED_SOURCES},
    }
    objects = [*(f"{name}.o" for name in HOST_SOURCES), *launchers]
    lines = [
        *compile_rule("host", f"-O2 -Wall -Wextra {includes}"),
        *compile_rule("launcher", f"-Wall -Wextra {flags} {CHECKED} {local} {stable} {includes}"),
        # Not with CHECKED: its runtime is what access.cpp stands for.
        *ninja.link_rule(
            "link",
            f"g++ -Wl,-Bsymbolic {flags}",
            f"-L{ninja.word(torch / 'lib')} -ltorch_cpu -ltorch -lc10 -ldl",
        ),
        *(ninja.build(f"{name}.o", "host", [HERE / f"{name}.cpp"]) for name in HOST_SOURCES),
        *(ninja.build(object, "launcher", [source]) for object, source in launchers.items()),
        ninja.build("libemulated_device.so", "link", objects),
    ]
    result = ninja.run(directory, lines, quiet=True)
    if result.returncode != 0:
        raise RuntimeError(f"the host executor does not compile:\n{result.stdout[-6000:]}")
    return directory / "libemulated_device.so"
