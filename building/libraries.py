"""The ninja file of both libraries.

Objects live in build/ninja, which outlasts pip's temporary folders, and PyTorch's headers are
reached through a link there: the command lines stay the same from one isolated build to the next,
so only what changed is compiled again. All of the project is named from there, so that it does not
matter what the folder above it is called; what lies elsewhere is quoted.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from . import CSRC, ROOT, TORCH_TARGET_VERSION, cuda, ninja, say

DIRECTORY = ROOT / "build" / "ninja"
# By the name of the library: atrousx/_C.so.
SOURCES = {
    "_C": [CSRC / "schema.cpp", *sorted(CSRC.glob("*/cpu/**/*.cpp"))],
    "_cuda": [CSRC / "cuda" / "module.cpp", *sorted(CSRC.glob("*/cuda/**/*.cu"))],
}


def variable(name: str) -> str:
    return os.environ.get(name, "").strip()


def build(with_cuda: bool) -> dict[str, Path]:
    """Compiles the libraries as far as anything has changed; where they are, by name."""
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
    """What the C++ compiler and nvcc are both told."""
    defines = f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION} " + ninja.define(
        "ATROUSX_BUILT_WITH_TORCH", torch_version
    )
    return f"-std=c++20 -O3 {defines} -I../../csrc -isystem torch/include"


LIBRARIES = "-Ltorch/lib -ltorch_cpu -lc10 -ldl"


def compiler() -> str:
    # Where CC alone is set, its compiler compiles C++ by the files' suffix.
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
    # The assembler's report on registers and spills goes to $out.ptxas, which a test reads; the
    # compiler's messages go there with it, so that warnings are shown again.
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
    # nvcc knows where its static runtime is; libtorch_cuda is never linked.
    link = f"-cudart static {LIBRARIES} {cuda.host_flags(variable('LDFLAGS'))}"
    return [
        *ninja.compile_rule("nvcc", ninja.word(nvcc), flags, report),
        *ninja.link_rule("link_cuda", ninja.word(nvcc), link),
        *library("_cuda", "link_cuda", defines),
    ]


def library(name: str, link: str, flags: str = "") -> list[str]:
    """The build lines of a library; ``flags`` are those of its C++ files."""
    lines, objects = [], []
    for source in SOURCES[name]:
        target = f"{name}/{source.relative_to(CSRC).with_suffix('.o')}"
        rule = "nvcc" if source.suffix == ".cu" else "cxx"
        lines.append(ninja.build(target, rule, [Path("../..") / source.relative_to(ROOT)]))
        if flags and rule == "cxx":
            lines.append(f"  flags = {flags}")
        objects.append(target)
    return [*lines, ninja.build(f"{name}.so", link, objects)]
