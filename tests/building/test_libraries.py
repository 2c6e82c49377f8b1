"""Both libraries: their compilers and flags, and the wheel that contains them."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import shlex
import sys
import time
from pathlib import Path

import pytest
from setuptools import Distribution, Extension

from building import ROOT, cuda, libraries

# A compiler that records each call on one line and creates its output. A shell starts it, because
# the path of an interpreter in a "#!" line cannot contain a space.
COMPILER = f"""#!/bin/sh
"exec" "{sys.executable}" "$0" "$@"
import json, pathlib, sys
with open(pathlib.Path(sys.argv[0]).with_suffix(".calls"), "a") as calls:
    print(json.dumps(sys.argv[1:]), file=calls)
pathlib.Path(sys.argv[sys.argv.index("-o") + 1]).touch()
"""


class Project:
    """A project with one file per library, such compilers, and a folder whose name needs quotes."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = folder / "at rous-é"
        self.compilers = {name: folder / "b in" / name for name in ("c++", "cc", "nvcc")}
        for compiler in self.compilers.values():
            compiler.parent.mkdir(exist_ok=True)
            compiler.write_text(COMPILER)
            compiler.chmod(0o755)
        csrc = self.root / "csrc"
        self.sources = {"_C": [csrc / "a.cpp"], "_cuda": [csrc / "b.cpp", csrc / "c.cu"]}
        csrc.mkdir(parents=True)
        for source in itertools.chain(*self.sources.values()):
            source.touch()
        for name, value in {
            "ROOT": self.root,
            "CSRC": csrc,
            "DIRECTORY": self.root / "build" / "ninja",
            "SOURCES": self.sources,
        }.items():
            monkeypatch.setattr(libraries, name, value)
        monkeypatch.setattr(cuda, "wanted_nvcc", lambda: self.compilers["nvcc"])
        monkeypatch.setattr(cuda, "release", lambda _: "13.0")
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0a")
        monkeypatch.setenv("CXX", shlex.quote(str(self.compilers["c++"])))
        for name in ("CC", "CPPFLAGS", "CXXFLAGS", "LDFLAGS", "ATROUSX_COMPILE_COMMANDS"):
            monkeypatch.delenv(name, raising=False)

    def calls(self, compiler: str) -> list[list[str]]:
        """Returns the calls of a compiler since the last time."""
        file = self.compilers[compiler].with_suffix(".calls")
        lines = file.read_text().splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        return [json.loads(line) for line in lines]


@pytest.fixture
def project(tmp_path, monkeypatch):
    return Project(tmp_path, monkeypatch)


def test_only_what_has_changed_is_compiled_again(project):
    built = libraries.build(with_cuda=True)
    assert sorted(built) == ["_C", "_cuda"]
    assert all(file.is_file() for file in built.values())
    assert len(project.calls("c++")) == 3  # a.cpp, b.cpp, and the link of _C
    assert len(project.calls("nvcc")) == 2
    libraries.build(with_cuda=True)
    assert project.calls("c++") == project.calls("nvcc") == []
    later = time.time() + 10
    os.utime(project.sources["_C"][0], (later, later))
    libraries.build(with_cuda=True)
    assert [call[call.index("-o") + 1] for call in project.calls("c++")] == ["_C/a.o", "_C.so"]
    assert project.calls("nvcc") == []


def test_the_users_compiler_and_flags_are_taken(project, monkeypatch):
    monkeypatch.setenv("CXX", f"{shlex.quote(str(project.compilers['c++']))} -m64")
    monkeypatch.setenv("CPPFLAGS", "-I'/a b'")
    monkeypatch.setenv("CXXFLAGS", """-O1 '-DNAME="é $x"'""")
    monkeypatch.setenv("LDFLAGS", "-Wl,-rpath,'$ORIGIN/a b'")
    libraries.build(with_cuda=True)
    calls = {call[call.index("-o") + 1]: call for call in project.calls("c++")}
    assert all(call[0] == "-m64" for call in calls.values())
    for target in ("_C/a.o", "_cuda/b.o"):
        given = calls[target]
        assert {"-I/a b", "-O1", '-DNAME="é $x"'} <= set(given)
        assert given.index("-O3") < given.index("-O1")  # the last flag counts
    assert "-Wl,-rpath,$ORIGIN/a b" in calls["_C.so"]
    of_nvcc = {call[call.index("-o") + 1]: call for call in project.calls("nvcc")}
    assert not {"-O1", "-I/a b"} & set(of_nvcc["_cuda/c.o"])
    assert '-Xcompiler="-Wl,-rpath,\\\\$ORIGIN/a b"' in of_nvcc["_cuda.so"]


def test_cc_is_taken_where_there_is_no_cxx(project, monkeypatch):
    monkeypatch.setenv("CC", shlex.quote(str(project.compilers["cc"])))
    monkeypatch.delenv("CXX")
    libraries.build(with_cuda=False)
    assert len(project.calls("cc")) == 2
    assert project.calls("nvcc") == []


def test_compile_commands_are_written_on_request(project, monkeypatch):
    file = project.root / "compile_commands.json"
    libraries.build(with_cuda=True)
    assert not file.exists()
    monkeypatch.setenv("ATROUSX_COMPILE_COMMANDS", "1")
    libraries.build(with_cuda=True)
    found = json.loads(file.read_text(encoding="utf-8"))
    sources = {(Path(entry["directory"]) / entry["file"]).resolve() for entry in found}
    assert sources == set(itertools.chain(*project.sources.values()))
    assert all("-DTORCH_TARGET_VERSION" in entry["command"] for entry in found)


def test_a_compiler_that_fails_ends_the_build_in_a_sentence(project, monkeypatch):
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(SystemExit, match="atrousx: the compilers failed"):
        libraries.build(with_cuda=False)


@pytest.fixture
def setup_module():
    spec = importlib.util.spec_from_file_location("atrousx_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_wheel_serves_every_python(setup_module):
    distribution = Distribution({"ext_modules": [Extension("atrousx._C", [])]})
    wheel = setup_module.PlatformWheel(distribution)
    wheel.ensure_finalized()
    python, abi, platform = wheel.get_tag()
    assert (python, abi) == ("py3", "none")
    assert platform != "any"
    build = setup_module.NinjaBuild(distribution)
    assert build.get_ext_filename("atrousx._C") == str(Path("atrousx", "_C.so"))


def test_a_build_leaves_out_what_an_earlier_one_left(setup_module, tmp_path, monkeypatch):
    monkeypatch.setattr(cuda, "wanted_nvcc", lambda: None)
    (tmp_path / "built").touch()
    monkeypatch.setattr(libraries, "build", lambda with_cuda: {"_C": tmp_path / "built"})
    stale = [tmp_path / "lib" / "atrousx" / name for name in ("_cuda.so", "_C.abi3.so", "old.py")]
    stale[0].parent.mkdir(parents=True)
    for file in stale:
        file.touch()
    extensions = [Extension(f"atrousx.{name}", []) for name in libraries.SOURCES]
    commands = {"build": setup_module.FreshBuild, "build_ext": setup_module.NinjaBuild}
    distribution = Distribution({"ext_modules": extensions, "cmdclass": commands})
    distribution.get_command_obj("build").build_lib = str(tmp_path / "lib")
    distribution.run_command("build")
    assert [file.name for file in stale[0].parent.iterdir()] == ["_C.so"]
