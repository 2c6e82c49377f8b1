"""Quoting of words and paths in a ninja file."""

from __future__ import annotations

import shlex

import pytest

from building import ninja

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
