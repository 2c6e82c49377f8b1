"""Compiles CUDA code with g++, to run on the host.

:func:`build_device` builds the library that ``device.py`` loads into PyTorch. It contains the
launchers and kernels of ``csrc`` for a device in host memory, and the executor that runs them.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from building import CSRC, ROOT, TORCH_TARGET_VERSION, ninja

SOURCES = Path(__file__).resolve().parent / "src"
# Each load and store calls access.cpp, which replaces the flag's own runtime. AddressSanitizer
# cannot be combined with it, and is not needed: access.cpp sees every access, too.
CHECKED = "-fsanitize=thread"
DEVICE_FLAGS = {
    "plain": "-O1",
    "coverage": "-O1 --coverage -fprofile-update=single",
    # -g1 is enough: a report needs only lines and names.
    "undefined": "-O1 -g1 -fsanitize=undefined -fno-sanitize-recover=all",
}
# These are plain C++ and use PyTorch's whole interface. The CUDA code uses the stable interface.
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
    """Builds the library if anything has changed, and returns its path."""
    directory = ROOT / "build" / f"emulated-device-{variant}"
    torch = torch_folder()
    # Launchers use the stable interface, as in setup.py; the device uses PyTorch's whole interface.
    # A small largest grid makes kernels loop over jobs beyond the grid.
    stable = (
        f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION} -DATROUSX_CUDA_KEY=PrivateUse1 "
        "-DATROUSX_MOST_BLOCKS=3"
    )
    folders = (torch / "include", torch / "include/torch/csrc/api/include")
    includes = " ".join(
        [f"-I{ninja.word(folder)}" for folder in (SOURCES, CSRC)]
        + [f"-isystem {ninja.word(folder)}" for folder in folders]
    )
    flags = DEVICE_FLAGS[variant]
    # Static variables in templates stay in this library, even if the nvcc library exports the same
    # ones.
    local = "-fno-gnu-unique"
    launchers = {
        **{f"{s.relative_to(CSRC)}.o": s for s in sorted(CSRC.rglob("*.cu"))},
        **{f"{name}.o": SOURCES / f"{name}.cpp" for name in PLANTED_SOURCES},
    }
    host = [*HOST_SOURCES, *(["counters"] if variant == "coverage" else [])]
    objects = [*(f"{name}.o" for name in host), *launchers]
    lines = [
        *compile_rule("host", f"-O2 -Wall -Wextra {includes}"),
        *compile_rule("launcher", f"-Wall -Wextra {flags} {CHECKED} {local} {stable} {includes}"),
        # Without CHECKED, which would link its runtime; access.cpp replaces that.
        *ninja.link_rule(
            "link",
            f"g++ -Wl,-Bsymbolic {flags}",
            f"-L{ninja.word(torch / 'lib')} -ltorch_cpu -ltorch -lc10 -ldl",
        ),
        *(ninja.build(f"{name}.o", "host", [SOURCES / f"{name}.cpp"]) for name in host),
        *(ninja.build(object, "launcher", [source]) for object, source in launchers.items()),
        ninja.build("libemulated_device.so", "link", objects),
    ]
    result = ninja.run(directory, lines, quiet=True)
    if result.returncode != 0:
        raise RuntimeError(f"the host executor does not compile:\n{result.stdout[-6000:]}")
    return directory / "libemulated_device.so"
