"""The build: which compilers and flags, which architectures, what the sdist and the wheel hold."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from setuptools import Distribution, Extension

import atrousx
from building import ROOT, cuda, libraries, ninja
from tests.tree import source_files


@pytest.fixture(autouse=True)
def _no_choices(monkeypatch):
    for name in ("ATROUSX_CUDA", "CUDA_HOME", "CUDA_PATH", "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.delenv(name, raising=False)
    cuda.wanted_nvcc.cache_clear()


@pytest.fixture
def no_nvcc(monkeypatch, tmp_path):
    """A machine without CUDA, except that CUDA_HOME points at an empty folder."""
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(cuda.shutil, "which", lambda _: None)
    monkeypatch.setattr(cuda, "DEFAULT_CUDA_HOME", tmp_path / "usr-local-cuda")


def test_without_nvcc_the_cuda_library_is_left_out_and_said(no_nvcc, capfd):
    assert cuda.wanted_nvcc() is None
    assert "CUDA library: not built, no nvcc. Looked for: " in capfd.readouterr().err


def test_forced_cuda_without_nvcc_names_what_was_looked_for(no_nvcc, monkeypatch, tmp_path):
    monkeypatch.setenv("ATROUSX_CUDA", "1")
    with pytest.raises(SystemExit) as error:
        cuda.wanted_nvcc()
    message = str(error.value)
    assert message.startswith("atrousx: ATROUSX_CUDA=1, but no nvcc. Looked for: ")
    for place in (tmp_path / "bin" / "nvcc", tmp_path / "usr-local-cuda" / "bin" / "nvcc"):
        assert str(place) in message
    assert "nvcc on the PATH" in message


def test_cuda_can_be_switched_off(monkeypatch, capfd):
    monkeypatch.setenv("ATROUSX_CUDA", "0")
    assert cuda.wanted_nvcc() is None
    assert "ATROUSX_CUDA=0" in capfd.readouterr().err


def test_other_values_are_refused(monkeypatch):
    monkeypatch.setenv("ATROUSX_CUDA", "yes")
    with pytest.raises(SystemExit, match="ATROUSX_CUDA must be 0 or 1, got 'yes'"):
        cuda.wanted_nvcc()


def test_architecture_list(monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0 8.6;9.0a+PTX")
    listed = cuda.cuda_architectures(Path("nvcc"))
    assert listed == ["8.0", "8.6", "9.0a+PTX"]
    assert cuda.gencode_flags(listed) == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_86,code=sm_86",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_90a,code=compute_90a",
    ]


def test_wrong_architecture_is_named():
    with pytest.raises(SystemExit, match="TORCH_CUDA_ARCH_LIST holds 'Hopper'"):
        cuda.gencode_flags(["Hopper"])


KNOWN = {"sm_75", "sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_100", "sm_103", "sm_120"}


@pytest.mark.parametrize(
    ("capabilities", "architectures"),
    [
        ([(8, 6), (9, 0)], ["8.6", "9.0a"]),
        ([(8, 0), (8, 0)], ["8.0"]),
        # Newer than this nvcc: PTX of the newest that it knows, which the driver compiles.
        ([(12, 1)], ["12.0+PTX"]),
        ([(10, 1)], ["10.0+PTX"]),
    ],
)
def test_the_gpu_that_is_there_decides(monkeypatch, capabilities, architectures):
    monkeypatch.setattr(cuda, "known_codes", lambda _: KNOWN)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", capabilities.__getitem__)
    assert cuda.cuda_architectures(Path("nvcc")) == architectures


def test_a_gpu_older_than_all_that_nvcc_knows_is_named():
    with pytest.raises(SystemExit, match=r"no GPU of capability 7\.0"):
        cuda.for_gpu(7, 0, KNOWN)


@pytest.mark.parametrize(
    ("known", "architectures"),
    [
        (KNOWN, ["8.0", "8.6", "9.0a", "10.0", "12.0+PTX"]),
        (KNOWN - {"sm_100", "sm_103", "sm_120"}, ["8.0", "8.6+PTX", "9.0a"]),
    ],
)
def test_by_default_common_gpus_and_those_to_come(monkeypatch, known, architectures):
    monkeypatch.setattr(cuda, "known_codes", lambda _: known)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cuda.cuda_architectures(Path("nvcc")) == architectures


TEXTS = ["/opt/a b/nvcc", "/opt/é/$HOME'/x", 'say "8.0 9.0a"', "a:b"]


@pytest.mark.parametrize("quote", [ninja.word, lambda text: ninja.words(shlex.quote(text))])
@pytest.mark.parametrize("text", TEXTS)
def test_a_word_reaches_the_command_as_it_is(tmp_path, text, quote):
    lines = ["rule say", f"  command = printf %s {quote(text)} > $out", "build out: say"]
    ninja.run(tmp_path, lines, quiet=True).check_returncode()
    assert (tmp_path / "out").read_text(encoding="utf-8") == text


@pytest.mark.parametrize("name", ["a b", "é", "$HOME", "a:b"])
def test_a_path_of_a_build_line_is_that_file(tmp_path, name):
    (tmp_path / name).write_text("text")
    lines = ["rule copy", "  command = cp $in $out", ninja.build(f"{name}.o", "copy", [name])]
    ninja.run(tmp_path, lines, quiet=True).check_returncode()
    assert (tmp_path / f"{name}.o").read_text() == "text"


# A compiler that writes down how it was called, one line a call, and makes its output. A shell
# starts it, since a first line can name no interpreter in a folder with a space in its name.
COMPILER = f"""#!/bin/sh
"exec" "{sys.executable}" "$0" "$@"
import json, pathlib, sys
with open(pathlib.Path(sys.argv[0]).with_suffix(".calls"), "a") as calls:
    print(json.dumps(sys.argv[1:]), file=calls)
pathlib.Path(sys.argv[sys.argv.index("-o") + 1]).touch()
"""


class Project:
    """A project of one file a library, in a folder whose name needs quotes, with such compilers."""

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
        """How a compiler was called since this was asked last."""
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
        assert given.index("-O3") < given.index("-O1")  # the last one counts
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


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_nvcc_hands_flags_on_as_they_are(tmp_path, monkeypatch):
    linker = tmp_path / "linker"
    # nvcc asks its host's compiler for more than to link.
    linker.write_text('#!/bin/sh\nprintf "%s\\n" "$@" >> arguments\nexec c++ "$@"\n')
    linker.chmod(0o755)
    (tmp_path / "a.cpp").touch()
    flags = ["-Wl,-rpath,/a b", "-Wl,-rpath,$ORIGIN/c"]
    command = f"nvcc -ccbin {linker} -shared a.cpp -o a.so {cuda.host_flags(shlex.join(flags))}"
    lines = ["rule link", f"  command = {command}", "build a.so: link"]
    monkeypatch.delenv("NVCC_CCBIN", raising=False)
    ninja.run(tmp_path, lines, quiet=True).check_returncode()
    assert set(flags) <= set((tmp_path / "arguments").read_text().splitlines())


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


# Of git's files, what is about git and the machines that test.
NOT_SHIPPED = {".gitignore", ".pre-commit-config.yaml", ".ci/run"}
# What setuptools adds.
ADDED = re.compile(r"PKG-INFO|setup\.cfg|atrousx\.egg-info/.*")


@pytest.fixture(scope="module")
def sources():
    """The files that git holds, by name."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs git's list of files")
    return {name for name in source_files() if not ADDED.fullmatch(name)}


@pytest.fixture(scope="module")
def sdist(sources, tmp_path_factory):
    """The sdist, unpacked. A copy makes it: setuptools would take files from an older list."""
    folder = tmp_path_factory.mktemp("sdist")
    for name in sources:
        (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / "tree" / name)
    code = "from setuptools.build_meta import build_sdist; build_sdist('..')"
    command = [sys.executable, "-c", code]
    subprocess.run(command, cwd=folder / "tree", check=True, capture_output=True)
    (archive,) = folder.glob("*.tar.gz")
    shutil.unpack_archive(archive, folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


def test_the_sdist_holds_what_git_holds(sdist, sources):
    shipped = {str(file.relative_to(sdist)) for file in sdist.rglob("*") if file.is_file()}
    assert {name for name in shipped if not ADDED.fullmatch(name)} == sources - NOT_SHIPPED


def test_the_sdist_holds_every_file_that_was_compiled(sdist):
    if not (libraries.DIRECTORY / ".ninja_deps").is_file():
        pytest.skip("nothing was compiled here")
    printed = ninja.tool(libraries.DIRECTORY, "deps")
    read = {
        os.path.normpath(libraries.DIRECTORY / line.strip())
        for line in printed.splitlines()
        if line.startswith("    ../../csrc/")
    }
    # The log also has objects of an older tree, made of files that have moved since.
    there = [Path(name).relative_to(ROOT) for name in read if Path(name).is_file()]
    assert len(there) > 50
    assert [name for name in there if not (sdist / name).is_file()] == []


def test_the_sdist_compiles(sdist):
    """A library of one file; all of it is compiled by `make wheel`."""
    code = """
from building import CSRC, libraries
libraries.SOURCES = {"_C": [CSRC / "schema.cpp"]}
import torch
torch.ops.load_library(libraries.build(with_cuda=False)["_C"])
print(*torch.ops.atrousx._cpu_build_info())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=sdist, capture_output=True, text=True)
    assert done.stdout.split()[-1:] == [torch.__version__], done.stdout + done.stderr


def test_the_version_is_written_once():
    written = re.compile(r"""^(__)?version\S* = ["']\d""", re.MULTILINE | re.IGNORECASE)
    files = [ROOT / "pyproject.toml", ROOT / "setup.py", *ROOT.glob("atrousx/**/*.py")]
    found = [file.name for file in files if written.search(file.read_text(encoding="utf-8"))]
    assert found == ["_version.py"]
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", atrousx.__version__)


def test_versions_of_the_tools_are_written_once():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (lint,) = re.findall(r"^lint = \[(.*)\]", project, re.MULTILINE)
    for name in ("ruff", "mypy", "clang-format"):
        assert re.search(rf'"{name}==\d+\.\d+\.\d+"', lint)
    hooks = ROOT / ".pre-commit-config.yaml"
    if hooks.is_file():  # not in the sdist
        assert re.findall(r"repo: (.*)", hooks.read_text(encoding="utf-8")) == ["local"]
