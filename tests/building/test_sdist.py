"""The contents of the sdist: everything that is needed to compile it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from building import ROOT, libraries, ninja
from tests.tree import source_files

# Files in git that belong to git itself and to the test machines.
NOT_SHIPPED = {".gitignore", ".pre-commit-config.yaml", ".ci/run"}
# Files that setuptools adds.
ADDED = re.compile(r"PKG-INFO|setup\.cfg|atrousx\.egg-info/.*")


@pytest.fixture(scope="module")
def sources():
    """Returns the names of the files in git."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs git's list of files")
    return {name for name in source_files() if not ADDED.fullmatch(name)}


@pytest.fixture(scope="module")
def sdist(sources, tmp_path_factory):
    """The unpacked sdist. It is made from a copy, because setuptools would reuse an older list."""
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
    # The log also lists objects of an older tree, whose sources have moved since.
    there = [Path(name).relative_to(ROOT) for name in read if Path(name).is_file()]
    assert len(there) > 50
    assert [name for name in there if not (sdist / name).is_file()] == []


def test_the_sdist_compiles(sdist):
    """Compiles a library of one file. `make wheel` compiles everything."""
    code = """
from building import CSRC, libraries
libraries.SOURCES = {"_C": [CSRC / "schema.cpp"]}
import torch
torch.ops.load_library(libraries.build(with_cuda=False)["_C"])
print(*torch.ops.atrousx._cpu_build_info())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=sdist, capture_output=True, text=True)
    assert done.stdout.split()[-1:] == [torch.__version__], done.stdout + done.stderr
