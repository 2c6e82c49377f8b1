"""Builds atrousx/_C.so (always) and atrousx/_cuda.so (if nvcc is found) with ninja.

PyTorch's BuildExtension refuses to compile CUDA if the installed PyTorch has no CUDA. atrousx
compiles against the stable ABI, whose headers are the same in every build of PyTorch. So it calls
nvcc itself: see the folder building.

Environment:
  ATROUSX_CUDA=0|1            0: no CUDA library; 1: it must be built; default: built if nvcc exists
  CUDA_HOME                   folder of CUDA; default: nvcc on the PATH, then /usr/local/cuda
  TORCH_CUDA_ARCH_LIST        e.g. "8.6;12.0+PTX"; default: the GPUs found, else a fixed list
  MAX_JOBS                    compilers that run at the same time; default: the number of cores
  CXX, or else CC             the C++ compiler; default: c++
  CPPFLAGS, CXXFLAGS          flags of the C++ compiler, after atrousx's own flags
  LDFLAGS                     flags of the linker, for both libraries
  ATROUSX_COMPILE_COMMANDS=1  writes compile_commands.json, which editors read
nvcc itself reads NVCC_CCBIN, NVCC_PREPEND_FLAGS and NVCC_APPEND_FLAGS.
"""

import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
# An isolated build does not search the folder of setup.py for modules.
sys.path.insert(0, str(ROOT))

from building import cuda, libraries  # noqa: E402


class NinjaBuild(build_ext):
    """Compiles the libraries with ninja. They are not Python modules: torch loads them."""

    extensions: list[Extension]

    def finalize_options(self) -> None:
        super().finalize_options()
        if cuda.wanted_nvcc() is None:
            self.extensions = [e for e in self.extensions if e.name != "atrousx._cuda"]

    def build_extensions(self) -> None:
        names = [extension.name for extension in self.extensions]
        built = libraries.build(with_cuda="atrousx._cuda" in names)
        for name in libraries.SOURCES:
            target = Path(self.get_ext_fullpath(f"atrousx.{name}"))
            target.parent.mkdir(parents=True, exist_ok=True)
            # A library of an earlier build must not stay. Deleting, not overwriting, the file keeps
            # it intact for processes that have loaded it.
            target.unlink(missing_ok=True)
            if name in built:
                shutil.copyfile(built[name], target)

    def get_ext_filename(self, fullname: str) -> str:
        # The name has no tag of a Python version, because the libraries do not use Python.
        return str(Path(*fullname.split(".")).with_suffix(".so"))


class FreshBuild(build):
    """Collects a wheel's files in an empty folder: an earlier build may have left other files."""

    def run(self) -> None:
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class PlatformWheel(bdist_wheel):
    """A wheel for every Python 3, because the libraries do not use Python's C API."""

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


def main() -> None:
    setup(
        ext_modules=[
            Extension(f"atrousx.{name}", [str(source.relative_to(ROOT)) for source in sources])
            for name, sources in libraries.SOURCES.items()
        ],
        cmdclass={"build": FreshBuild, "build_ext": NinjaBuild, "bdist_wheel": PlatformWheel},
    )


if __name__ == "__main__":
    main()
