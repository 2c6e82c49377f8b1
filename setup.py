"""Builds atrousx/_C (always) and atrousx/_cuda (when nvcc is found); ninja runs the compilers.

PyTorch's own BuildExtension refuses to compile CUDA where its PyTorch has none. atrousx compiles
against the stable ABI, whose headers are the same in every build of PyTorch, so it calls nvcc
itself.

Environment:
  ATROUSX_CUDA=0|1       without or with the CUDA library; default: with it where nvcc is found
  CUDA_HOME              where CUDA is; default: nvcc on the PATH, then /usr/local/cuda
  TORCH_CUDA_ARCH_LIST   e.g. "8.6;12.0+PTX"; default: the GPU that is there, else a common list
  MAX_JOBS               compilers run at the same time; default: the number of cores
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import torch
from ninja import BIN_DIR
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
# The oldest PyTorch whose stable ABI is used: 2.11. Written once, read by every translation unit.
TORCH_TARGET_VERSION = "0x020b000000000000"
DEFAULT_CUDA_HOME = Path("/usr/local/cuda")
# Machine code for these, and PTX of the newest, which the driver compiles for GPUs to come. GPUs of
# 8.9 run the code of 8.6: nvcc makes the same of both, byte for byte.
DEFAULT_ARCHITECTURES = ("8.0", "8.6", "9.0a", "10.0", "12.0")

CSRC = ROOT / "csrc"
CPU_SOURCES = [CSRC / "schema.cpp", *sorted(CSRC.glob("*/cpu/**/*.cpp"))]
CUDA_SOURCES = [CSRC / "cuda" / "module.cpp", *sorted(CSRC.glob("*/cuda/**/*.cu"))]


def say(message: str) -> None:
    # pip hides standard output of a build; standard error reaches the user with -v and on failure.
    print(f"atrousx: {message}", file=sys.stderr, flush=True)


def find_nvcc() -> tuple[Path | None, str]:
    """The compiler, and every place that was looked at."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    on_path = shutil.which("nvcc")
    candidates = [Path(home) / "bin" / "nvcc" for home in homes]
    candidates += [Path(on_path)] if on_path else []
    candidates += [DEFAULT_CUDA_HOME / "bin" / "nvcc"]
    looked = [str(c) for c in candidates] + ([] if on_path else ["nvcc on the PATH"])
    return next((c for c in candidates if c.is_file()), None), ", ".join(looked)


def wanted_nvcc() -> Path | None:
    """The nvcc to build with, or None with the reason printed."""
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
    """Architectures to compile for, in the notation of TORCH_CUDA_ARCH_LIST."""
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(",", ";").replace(" ", ";")
    if listed.strip(";"):
        return [a for a in listed.split(";") if a]
    known = known_codes(nvcc)
    if torch.cuda.is_available():
        found = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
        return sorted({for_gpu(*capability, known) for capability in found})
    chosen = [a for a in DEFAULT_ARCHITECTURES if code(a) in known]
    # A suffix binds PTX to its own architecture, too.
    newest = max((i for i, a in enumerate(chosen) if a[-1].isdigit()), default=None)
    if newest is not None:
        chosen[newest] += "+PTX"
    return chosen


def known_codes(nvcc: Path) -> set[str]:
    """What this nvcc can compile for: sm_80, ..."""
    command = [nvcc, "--list-gpu-code"]
    return set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())


def code(architecture: str) -> str:
    # nvcc lists architectures without their suffixes.
    return "sm_" + re.sub(r"[.af]", "", architecture)


def for_gpu(major: int, minor: int, known: set[str]) -> str:
    """The architecture for a GPU; PTX of the newest before it where nvcc does not know it."""
    # Hopper's own instructions exist only in the architecture-specific target.
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


def word(text: str | Path) -> str:
    """One word of a shell's command line in a ninja file."""
    return shlex.quote(str(text)).replace("$", "$$")


def define(name: str, text: str) -> str:
    """A compiler's option that defines a string."""
    return word(f'-D{name}="{text}"')


class NinjaBuild(build_ext):
    """Writes one build.ninja for both libraries and runs it.

    Objects live in build/ninja, which outlasts pip's temporary folders, and PyTorch's headers are
    reached through a link there: the command lines stay the same from one isolated build to the
    next, so only what changed is compiled again. All of the project is named from there, so that
    it does not matter what the folder above it is called; what lies elsewhere is quoted.
    """

    def build_extensions(self) -> None:
        directory = ROOT / "build" / "ninja"
        directory.mkdir(parents=True, exist_ok=True)
        torch_link = directory / "torch"
        torch_link.unlink(missing_ok=True)
        torch_link.symlink_to(Path(torch.__file__).parent, target_is_directory=True)
        outputs = {ext.name: Path(self.get_ext_fullpath(ext.name)) for ext in self.extensions}
        (directory / "build.ninja").write_text(self.ninja_file(), encoding="utf-8")
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
        # The ninja package before the system: another version would start the build log over.
        ninja = shutil.which("ninja", path=BIN_DIR) or "ninja"
        try:
            subprocess.run([ninja, "-C", str(directory), "-j", jobs], check=True)
        except subprocess.CalledProcessError as error:
            raise SystemExit("atrousx: the compilers failed; their messages are above") from error
        for name, output in outputs.items():
            output.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(directory / f"{name}.so", output)

    def ninja_file(self) -> str:
        includes = (
            f"-I../../csrc -isystem torch/include -isystem {word(sysconfig.get_path('include'))}"
        )
        defines = (
            f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION} -DPy_LIMITED_API=0x030A0000 "
            + define("ATROUSX_BUILT_WITH_TORCH", torch.__version__)
        )
        common = f"-std=c++20 -O3 {defines} {includes}"
        link = "-Ltorch/lib -ltorch_cpu -lc10 -ldl"
        lines = [
            "rule cxx",
            f"  command = c++ -MMD -MF $out.d -fPIC -fvisibility=hidden -Wall -Wextra {common} "
            "$flags -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "  description = c++ $in",
            "rule link",
            # Python's own symbols stay open: the interpreter that imports the module has them.
            f"  command = c++ -shared $in -o $out {link}",
            "  description = link $out",
        ]
        lines += self.library("_C", CPU_SOURCES, link="link")
        say(f"CPU library: {len(CPU_SOURCES)} files, against torch {torch.__version__}")
        if "atrousx._cuda" in (ext.name for ext in self.extensions):
            nvcc, _ = find_nvcc()
            assert nvcc is not None
            architectures = cuda_architectures(nvcc)
            release = subprocess.run(
                [nvcc, "--version"], check=True, capture_output=True, text=True
            )
            version = re.search(r"release ([\d.]+)", release.stdout)
            say(f"CUDA library: {nvcc}, architectures {' '.join(architectures)}")
            lines += [
                "rule nvcc",
                # The assembler's report on registers and spills goes to $out.ptxas, which a test
                # reads; the compiler's messages go there with it, so that warnings are shown again.
                f"  command = {word(nvcc)} -MMD -MF $out.d --expt-relaxed-constexpr -Xptxas -v "
                f"-Xcompiler -fPIC,-fvisibility=hidden {common} -DUSE_CUDA "
                f"{' '.join(gencode_flags(architectures))} -c $in -o $out > $out.ptxas 2>&1 "
                "|| { cat $out.ptxas; false; } && { grep -A3 -i warning $out.ptxas || true; }",
                "  depfile = $out.d",
                "  deps = gcc",
                "  description = nvcc $in",
                "rule link_cuda",
                # nvcc knows where its static runtime is; libtorch_cuda is never linked.
                f"  command = {word(nvcc)} -shared -cudart static $in -o $out {link}",
                "  description = link $out",
            ]
            flags = " ".join(
                (
                    define("ATROUSX_CUDA_ARCHITECTURES", " ".join(architectures)),
                    define("ATROUSX_CUDA_VERSION", version[1] if version else "unknown"),
                )
            )
            lines += self.library("_cuda", CUDA_SOURCES, link="link_cuda", flags=flags)
        return "\n".join(lines) + "\n"

    @staticmethod
    def library(name: str, sources: list[Path], link: str, flags: str = "") -> list[str]:
        lines, objects = [], []
        for source in sources:
            target = f"{name}/{source.relative_to(CSRC).with_suffix('.o')}"
            rule = "nvcc" if source.suffix == ".cu" else "cxx"
            lines.append(f"build {target}: {rule} {Path('../..') / source.relative_to(ROOT)}")
            if flags and source.suffix != ".cu":
                lines.append(f"  flags = {flags}")
            objects.append(target)
        lines.append(f"build atrousx.{name}.so: {link} {' '.join(objects)}")
        return lines


def extension(name: str, sources: list[Path]) -> Extension:
    relative = [str(s.relative_to(ROOT)) for s in sources]
    return Extension(name, relative, py_limited_api=True)


def main() -> None:
    extensions = [extension("atrousx._C", CPU_SOURCES)]
    if wanted_nvcc() is not None:
        extensions.append(extension("atrousx._cuda", CUDA_SOURCES))
    setup(
        ext_modules=extensions,
        cmdclass={"build_ext": NinjaBuild},
        options={"bdist_wheel": {"py_limited_api": "cp310"}},
    )


if __name__ == "__main__":
    main()
