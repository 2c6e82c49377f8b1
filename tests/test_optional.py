"""The tests that a GPU runs can be found and run with torch, numpy and pytest alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ABSENT = (
    "cv2",
    "expecttest",
    "hypothesis",
    "matplotlib",
    "pybind11",
    "skimage",
    "timm",
    "torchvision",
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
    summary = bare_pytest(tmp_path, "-rs", "tests/ops/test_live_fraction.py")
    assert "needs hypothesis" in summary
    assert " passed" in summary


def test_hypothesis_is_used_where_it_is_there():
    pytest.importorskip("hypothesis")
    from tests import optional

    assert optional.given.__module__.startswith("hypothesis")
