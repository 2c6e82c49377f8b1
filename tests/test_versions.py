"""Every version is written in one place only."""

from __future__ import annotations

import re

import atrousx
from building import ROOT


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
    if hooks.is_file():  # it is not in the sdist
        assert re.findall(r"repo: (.*)", hooks.read_text(encoding="utf-8")) == ["local"]
