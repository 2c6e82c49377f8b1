"""Imports: atrousx imports only what it needs, and the tests that a GPU runs need only torch, numpy
and pytest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from atrousx.cli import main

ROOT = Path(__file__).parents[1]
ABSENT = (
    "cv2",
    "expecttest",
    "hypothesis",
    "matplotlib",
    "pybind11",
    "skimage",
    "tensorboard",
    "timm",
    "torchvision",
    "tqdm",
)
HIDING = f"""
from importlib.machinery import PathFinder

find_spec = PathFinder.find_spec

def find_others(name, path=None, target=None):
    return None if name.split(".")[0] in {ABSENT!r} else find_spec(name, path, target)

PathFinder.find_spec = find_others
"""


def bare_pytest(folder: Path, *options: str) -> str:
    (folder / "hiding.py").write_text(HIDING)
    path = os.pathsep.join([str(folder), str(ROOT)])
    plugins = ["-p", "hiding", "-p", "no:hypothesispytest", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *plugins, *options],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": path,
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_every_test_file_can_be_imported(tmp_path: Path):
    found = bare_pytest(tmp_path, "--collect-only", "tests")
    assert "test_against_oracle" in found


def test_what_needs_a_missing_package_is_skipped(tmp_path: Path):
    summary = bare_pytest(tmp_path, "-rs", "tests/ops/atrous_conv2d/test_live_fraction.py")
    assert "needs hypothesis" in summary
    assert " passed" in summary


def test_hypothesis_is_used_where_it_is_there():
    pytest.importorskip("hypothesis")
    from tests import optional

    assert optional.given.__module__.startswith("hypothesis")


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize(
    "statement",
    ["import atrousx", "from atrousx.cli import main; main(['refine', '--labels'])"],
    ids=["import", "wrong option"],
)
def test_what_takes_long_to_import_is_not_imported(statement: str):
    # A wrong option ends the process, which is expected. Modules that torch imports do not count.
    code = f"""
import sys, torch
before = set(sys.modules)
try:
    {statement}
except SystemExit:
    pass
print(*(set(sys.modules) - before))
"""
    done = python(code)
    imported = set(done.stdout.split())
    assert "atrousx" in imported, done.stderr
    assert not imported & {"cv2", "matplotlib", "torch._dynamo", "torch._inductor", "sympy"}


def test_torch_marks_constants_for_its_compiler_in_the_same_way():
    from atrousx._library import assume_constant_result

    def one() -> None: ...

    def other() -> None: ...

    assert vars(assume_constant_result(one)) == vars(torch.compiler.assume_constant_result(other))


@pytest.mark.parametrize(
    "arguments",
    [
        "segment photograph.jpg --weights w.pth --out folder",
        "refine photograph.jpg labels.png --out refined.png",
        "crf-search --images a --scores b --labels c --out folder",
        "generate-scenes folder",
        "check-data folder --format voc",
    ],
)
def test_without_opencv_commands_say_so_in_a_sentence(monkeypatch, capsys, arguments: str):
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert main(arguments.split()) == 2
    command = arguments.split()[0]
    message = capsys.readouterr().err
    assert message.startswith(f"atrousx {command}: pictures need OpenCV, which cannot be imported")
    assert "pip install opencv-python" in message
    assert message.count("\n") == 1


def test_without_opencv_help_is_there(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(SystemExit):
        main(["segment", "--help"])
    assert "--weights" in capsys.readouterr().out
