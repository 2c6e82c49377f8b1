"""Choices in a cache file: other processes find and share it, and a bad file does no harm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import atrousx
from atrousx.backend import cache
from atrousx.backend import measure as measuring
from atrousx.ops import atrous_conv2d

X, W = torch.randn(1, 4, 9, 9), torch.randn(6, 4, 3, 3)


def convolve():
    return atrous_conv2d(X, W, padding=2, dilation=2, backend="measure")


def run_anew():
    """Simulates a new process. Writes the choices first, as at the end of this process."""
    measuring._write()
    measuring.forget()
    convolve()
    return [choice for _, choice in measuring.table]


@pytest.fixture
def file(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "choices.json"
    monkeypatch.setenv("ATROUSX_CACHE", str(path))
    return path


@pytest.fixture
def trials(monkeypatch):
    seen = []
    right = measuring.try_both

    def counted(geometry, *args, **kwargs):
        seen.append(geometry)
        return right(geometry, *args, **kwargs)

    monkeypatch.setattr(measuring, "try_both", counted)
    return seen


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"ATROUSX_CACHE": "0"}, None),
        ({"ATROUSX_CACHE": "/some/file"}, "/some/file"),
        ({"XDG_CACHE_HOME": "/caches"}, "/caches/atrousx/choices.json"),
        ({"XDG_CACHE_HOME": "relative"}, "/home/somebody/.cache/atrousx/choices.json"),
        ({}, "/home/somebody/.cache/atrousx/choices.json"),
    ],
)
def test_where_the_file_is(monkeypatch, environment, expected):
    for name in ("ATROUSX_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/somebody", **environment}.items():
        monkeypatch.setenv(name, value)
    assert cache.location() == (None if expected is None else Path(expected))


def test_a_folder_holds_a_file_of_that_name(monkeypatch, tmp_path):
    monkeypatch.setenv("ATROUSX_CACHE", str(tmp_path))
    assert cache.location() == tmp_path / "choices.json"


def test_the_next_process_finds_a_choice(clock, file, trials):
    clock.update(native=9.0)
    convolve()
    (choice,) = run_anew()
    assert len(trials) == 1
    assert (choice.source, choice.native, choice.native_seconds) == ("cached", False, 9.0)
    assert os.listdir(file.parent) != []
    assert [name for name in os.listdir(file.parent) if name.startswith(".choices.json.")] == [
        ".choices.json.lock"
    ]


def test_a_disagreement_is_kept_too(clock, file, trials, monkeypatch):
    from atrousx.backend import passes

    right = passes._forward
    with monkeypatch.context() as patched:
        patched.setattr(passes, "_forward", lambda *args: right(*args) + 1)
        with pytest.warns(RuntimeWarning, match="differ by"):
            convolve()
    (choice,) = run_anew()
    assert (choice.agrees, choice.native, len(trials)) == (False, False, 1)
    torch.testing.assert_close(convolve(), F.conv2d(X, W, padding=2, dilation=2))


def test_another_machine_or_build_measures_for_itself(clock, file, trials, monkeypatch):
    convolve()
    for name, value in (("_cpu", "another CPU"), ("build", "another build")):
        monkeypatch.setattr(f"atrousx.backend.machine.{name}", lambda value=value: value)
        (choice,) = run_anew()
        assert choice.source == "measured"
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        (choice,) = run_anew()
        assert choice.source == "measured"
    finally:
        torch.set_num_threads(threads)
    assert len(trials) == 4
    measuring._write()
    assert len(json.loads(file.read_text())["machines"]) == 4


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\xff",
        b"[1, 2]",
        b'{"format": 1, "machines": [1]}',
        b'{"format": 99, "machines": {}}',
        b'{"format": 1, "machines": {"a": 3}}',
        b'{"format": 1',
        b"[" * 100000,
    ],
)
def test_a_damaged_file_is_ignored_and_written_anew(clock, file, trials, content):
    file.parent.mkdir()
    file.write_bytes(content)
    convolve()
    (choice,) = run_anew()
    assert choice.source == "cached"
    assert len(trials) == 1


@pytest.mark.parametrize(
    ("geometry", "numbers"),
    [
        ("{}", [True, True, 1.0, 1.0, 0.0]),
        ('["forward"]', [True, True, 1.0, 1.0, 0.0]),
        (None, [True, True]),
        (None, [True, False, 1.0, 1.0, 0.0]),  # chosen, but wrong: no process writes this
        (None, ["yes", True, 1.0, 1.0, 0.0]),
        (None, {"native": True}),
    ],
)
def test_a_damaged_entry_is_ignored(clock, file, trials, geometry, numbers):
    convolve()
    measuring._write()
    content = json.loads(file.read_text())
    ((machine, entries),) = content["machines"].items()
    content["machines"][machine] = {geometry or next(iter(entries)): numbers}
    file.write_text(json.dumps(content))
    (choice,) = run_anew()
    assert choice.source == "measured"


def test_switched_off_there_is_no_file(clock, monkeypatch, tmp_path, trials):
    monkeypatch.setenv("ATROUSX_CACHE", "0")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    convolve()
    run_anew()
    assert len(trials) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_no_error(clock, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("ATROUSX_CACHE", str(tmp_path / "file" / "choices.json"))
    convolve()
    assert len(run_anew()) == 1


WRITER = """
import sys
sys.path.insert(0, {root!r})
import importlib.util
spec = importlib.util.spec_from_file_location("cache", {cache!r})
cache = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cache)
for i in range(40):
    cache.write("machine", {{f"{{sys.argv[1]}} {{i}}": [i]}})
"""


def test_processes_at_once_lose_nothing(file):
    source = WRITER.format(root=str(Path(cache.__file__).parents[2]), cache=cache.__file__)
    writers = [subprocess.Popen([sys.executable, "-c", source, str(n)]) for n in range(3)]
    while any(writer.poll() is None for writer in writers):
        if file.exists():
            json.loads(file.read_text())  # the file is complete at any moment
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert cache.read("machine") == {f"{n} {i}": [i] for n in range(3) for i in range(40)}


def test_a_process_writes_what_it_measured_when_it_ends(file):
    source = (
        "import torch, atrousx; x, w = torch.ones(1, 2, 5, 5), torch.ones(2, 2, 3, 3)\n"
        "for n in (1, 2, 3): atrousx.ops.atrous_conv2d(x, w, padding=n, backend='measure')"
    )
    subprocess.run(
        [sys.executable, "-c", source], check=True, cwd=Path(atrousx.__file__).parents[1]
    )
    (entries,) = json.loads(file.read_text())["machines"].values()
    assert len(entries) == 3
