"""Builds atrousx/_C.so (always) and atrousx/_cuda.so (when nvcc is found), by ninja.

PyTorch's own BuildExtension refuses to compile CUDA where its PyTorch has none. atrousx compiles
against the stable ABI, whose headers are the same in every build of PyTorch, so it calls nvcc
itself: see the folder building.

Environment:
  ATROUSX_CUDA=0|1            without or with the CUDA library; default: with it where nvcc is
  CUDA_HOME                   where CUDA is; default: nvcc on the PATH, then /usr/local/cuda
  TORCH_CUDA_ARCH_LIST        e.g. "8.6;12.0+PTX"; default: the GPU that is there, else a list
  MAX_JOBS                    compilers run at the same time; default: the number of cores
  CXX, or else CC             the C++ compiler; default: c++
  CPPFLAGS, CXXFLAGS          the C++ compiler's, after atrousx's own
  LDFLAGS                     the linker's, of both libraries
  ATROUSX_COMPILE_COMMANDS=1  writes compile_commands.json, which editors read
nvcc reads NVCC_CCBIN, NVCC_PREPEND_FLAGS and NVCC_APPEND_FLAGS itself.
"""

import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
# An isolated build does not look for modules beside setup.py.
sys.path.insert(0, str(ROOT))

from building import cuda, libraries  # noqa: E402


class NinjaBuild(build_ext):
    """Has ninja compile the libraries. They are no modules of Python's: torch loads them."""

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
            # What an earlier build left is not this one's; a process keeps what it has loaded.
            target.unlink(missing_ok=True)
            if name in built:
                shutil.copyfile(built[name], target)

    def get_ext_filename(self, fullname: str) -> str:
        # Without the tag of the Python that builds.
        return str(Path(*fullname.split(".")).with_suffix(".so"))


class FreshBuild(build):
    """Gathers a wheel's files in an empty folder: an earlier build may have had others."""

    def run(self) -> None:
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class PlatformWheel(bdist_wheel):
    """A wheel for every Python 3: there is no Python in the libraries."""

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
