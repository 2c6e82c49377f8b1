"""The script that runs the operators' tests under UBSan. Nothing is compiled."""

from __future__ import annotations

import pytest

from tests import sanitize_cpu


def test_tests_are_collected_by_name(monkeypatch):
    monkeypatch.setattr(sanitize_cpu, "TREE", sanitize_cpu.ROOT)
    found = sanitize_cpu.collected(["tests/ops/atrous_conv2d/test_precision.py"])
    assert "tests/ops/atrous_conv2d/test_precision.py::test_the_switch" in found
    with pytest.raises(SystemExit, match="no tests were found"):
        sanitize_cpu.collected(["tests/reference"])


def test_a_copy_holds_the_sources_and_keeps_objects(monkeypatch, tmp_path):
    sources = tmp_path / "sources"
    for name in ("a.cpp", "csrc/b.h"):
        (sources / name).parent.mkdir(parents=True, exist_ok=True)
        (sources / name).write_text(name)
    copy = tmp_path / "copy"
    for name in ("build/ninja/a.o", "csrc/gone.h", "gone.py"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).touch()
    monkeypatch.setattr(sanitize_cpu, "ROOT", sources)
    monkeypatch.setattr(sanitize_cpu, "TREE", copy)
    monkeypatch.setattr(sanitize_cpu, "source_files", lambda: ["a.cpp", "csrc/b.h"])
    sanitize_cpu.copy_tree()
    held = {str(f.relative_to(copy)) for f in copy.rglob("*") if f.is_file()}
    assert held == {"a.cpp", "csrc/b.h", "build/ninja/a.o"}
    assert (copy / "a.cpp").stat().st_mtime == (sources / "a.cpp").stat().st_mtime
