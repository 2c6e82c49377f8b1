"""Writes the ninja file of both libraries and builds them.

The objects are in build/ninja, which stays when pip deletes its temporary folders. A link there
leads to PyTorch's headers. So the command lines are the same in every isolated build, and only
changed files are compiled again. Paths of the project are relative to build/ninja, so the name of
the project's folder does not matter. Other paths are quoted.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from . import CSRC, ROOT, TORCH_TARGET_VERSION, cuda, ninja, say

DIRECTORY = ROOT / "build" / "ninja"
# The key is the name of the library, as in atrousx/_C.so.
SOURCES = {
    "_C": [CSRC / "schema.cpp", *sorted(CSRC.glob("*/cpu/**/*.cpp"))],
    "_cuda": [CSRC / "cuda" / "module.cpp", *sorted(CSRC.glob("*/cuda/**/*.cu"))],
}


def variable(name: str) -> str:
    return os.environ.get(name, "").strip()


def build(with_cuda: bool) -> dict[str, Path]:
    """Compiles the changed files of the libraries and returns the libraries' paths by name."""
    import torch

    DIRECTORY.mkdir(parents=True, exist_ok=True)
    torch_link = DIRECTORY / "torch"
    torch_link.unlink(missing_ok=True)
    torch_link.symlink_to(Path(torch.__file__).parent, target_is_directory=True)
    lines = cpu_library(torch.__version__)
    if with_cuda:
        lines += cuda_library(torch.__version__)
    try:
        ninja.run(DIRECTORY, lines).check_returncode()
    except subprocess.CalledProcessError as error:
        raise SystemExit("atrousx: the compilers failed; their messages are above") from error
    if variable("ATROUSX_COMPILE_COMMANDS") == "1":
        commands = ninja.tool(DIRECTORY, "compdb", "cxx", "nvcc")
        (ROOT / "compile_commands.json").write_text(commands, encoding="utf-8")
    return {name: DIRECTORY / f"{name}.so" for name in (SOURCES if with_cuda else ["_C"])}


def common_flags(torch_version: str) -> str:
    """Returns the flags that the C++ compiler and nvcc both get."""
    defines = f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION} " + ninja.define(
        "ATROUSX_BUILT_WITH_TORCH", torch_version
    )
    return f"-std=c++20 -O3 {defines} -I../../csrc -isystem torch/include"


LIBRARIES = "-Ltorch/lib -ltorch_cpu -lc10 -ldl"


def compiler() -> str:
    # If only CC is set, its compiler is used. It recognises C++ by the suffix of the files.
    return ninja.words(variable("CXX") or variable("CC") or "c++")


def cpu_library(torch_version: str) -> list[str]:
    say(f"CPU library: {len(SOURCES['_C'])} files, against torch {torch_version}")
    users = ninja.words(f"{variable('CPPFLAGS')} {variable('CXXFLAGS')}")
    flags = f"-fPIC -fvisibility=hidden -Wall -Wextra {common_flags(torch_version)} $flags {users}"
    libraries = f"{LIBRARIES} -lstdc++ -lm {ninja.words(variable('LDFLAGS'))}"
    return [
        *ninja.compile_rule("cxx", compiler(), flags),
        *ninja.link_rule("link", compiler(), libraries),
        *library("_C", "link"),
    ]


def cuda_library(torch_version: str) -> list[str]:
    nvcc = cuda.wanted_nvcc()
    assert nvcc is not None
    architectures = cuda.cuda_architectures(nvcc)
    say(f"CUDA library: {nvcc}, architectures {' '.join(architectures)}")
    flags = (
        "--expt-relaxed-constexpr -Xptxas -v -Xcompiler -fPIC,-fvisibility=hidden "
        f"{common_flags(torch_version)} -DUSE_CUDA {' '.join(cuda.gencode_flags(architectures))}"
    )
    # The assembler's report on registers and spills goes to $out.ptxas, which a test reads. The
    # compiler's messages go to the same file, so warnings are taken from it and shown again.
    report = (
        " > $out.ptxas 2>&1 || { cat $out.ptxas; false; } "
        "&& { grep -A3 -i warning $out.ptxas || true; }"
    )
    defines = " ".join(
        (
            ninja.define("ATROUSX_CUDA_ARCHITECTURES", " ".join(architectures)),
            ninja.define("ATROUSX_CUDA_VERSION", cuda.release(nvcc)),
        )
    )
    # nvcc links, because it knows where its static runtime is. libtorch_cuda is never linked.
    link = f"-cudart static {LIBRARIES} {cuda.host_flags(variable('LDFLAGS'))}"
    return [
        *ninja.compile_rule("nvcc", ninja.word(nvcc), flags, report),
        *ninja.link_rule("link_cuda", ninja.word(nvcc), link),
        *library("_cuda", "link_cuda", defines),
    ]


def library(name: str, link: str, flags: str = "") -> list[str]:
    """Returns the build lines of a library. ``flags`` are extra flags of its C++ files."""
    lines, objects = [], []
    for source in SOURCES[name]:
        target = f"{name}/{source.relative_to(CSRC).with_suffix('.o')}"
        rule = "nvcc" if source.suffix == ".cu" else "cxx"
        lines.append(ninja.build(target, rule, [Path("../..") / source.relative_to(ROOT)]))
        if flags and rule == "cxx":
            lines.append(f"  flags = {flags}")
        objects.append(target)
    return [*lines, ninja.build(f"{name}.so", link, objects)]
