"""Tests coverage.py: its table, and the lines that need not run. Nothing is compiled."""

from __future__ import annotations

import sys

import pytest

from tests.emulator import coverage


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([], ""), ([4], "4"), ([1, 2, 3, 7], "1-3 7"), ([1, 3, 4, 6, 7], "1 3-4 6-7")],
)
def test_spans(numbers, text):
    assert coverage.spans(numbers) == text


@pytest.mark.parametrize("line", coverage.ALLOWED, ids=lambda line: line[0])
def test_every_allowed_line_is_in_its_file(line):
    file, text = line
    lines = [line.strip() for line in (coverage.CSRC / file).read_text().splitlines()]
    assert "\n".join(lines).count(text) >= 1
    assert coverage.ALLOWED[line]


@pytest.fixture
def source(monkeypatch, tmp_path):
    """A file in which the closing brace after a return need not run."""
    monkeypatch.setattr(coverage, "ROOT", tmp_path)
    monkeypatch.setattr(coverage, "CSRC", tmp_path / "csrc")
    monkeypatch.setattr(coverage, "ALLOWED", {("a/b.cu", "return x;\n}"): "it unwinds"})
    file = tmp_path / "csrc" / "a" / "b.cu"
    file.parent.mkdir(parents=True)
    file.write_text("int f() {\n  return x;\n}\nvoid g() {\n}\n")
    return file


def test_allowed_lines_are_told_by_their_file_and_text(source):
    lines = source.read_text().splitlines()
    allowed = [n for n in range(1, 6) if coverage.is_allowed("a/b.cu", lines, n)]
    assert allowed == [3]
    assert not coverage.is_allowed("a/c.cu", lines, 3)


@pytest.mark.parametrize(
    ("counts", "wrong", "shown"),
    [
        ({1: 2, 2: 2, 3: 2}, [], "100 %"),
        ({1: 2, 2: 2, 3: 0}, [], "67 %  3"),
        ({1: 2, 2: 0, 3: 0, 5: 0}, ["csrc/a/b.cu:2: return x;", "csrc/a/b.cu:5: }"], "2-3 5"),
    ],
)
def test_the_table_names_the_lines_that_had_to_run(source, capsys, counts, wrong, shown):
    assert coverage.print_table({source: counts}) == len(wrong)
    out = capsys.readouterr().out
    assert shown in out
    assert ("must run them" in out) == bool(wrong)
    assert all(line in out for line in wrong)


@pytest.mark.parametrize(
    ("runs", "tests", "status"),
    [({2: 1}, 0, 0), ({2: 1}, 3, 3), ({2: 0}, 0, 1), ({3: 0}, 0, 0), (None, 0, 1)],
    ids=["ran", "a test failed", "a line did not run", "an allowed line", "no counts"],
)
def test_the_exit_status(source, monkeypatch, runs, tests, status):
    monkeypatch.setattr(coverage, "gathered", lambda: {source: runs} if runs else {})
    monkeypatch.setattr(coverage, "run_tests", lambda arguments: tests)
    monkeypatch.setattr(sys, "argv", ["coverage"])
    assert coverage.main() == status


def test_counts_are_found_in_sub_folders(monkeypatch, tmp_path):
    counts = tmp_path / "a" / "b.cu.gcda"
    counts.parent.mkdir()
    counts.touch()
    asked = []
    monkeypatch.setattr(coverage, "FOLDER", tmp_path)
    monkeypatch.setattr(coverage, "lines_of", lambda path: asked.append(path) or {path: {1: 2}})
    assert coverage.gathered() == {counts: {1: 2}}
    assert asked == [counts]
