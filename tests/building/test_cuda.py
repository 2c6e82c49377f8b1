"""Which nvcc compiles, for which GPUs, and the message if there is none."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
import torch

from building import cuda, ninja


@pytest.fixture
def no_nvcc(monkeypatch, tmp_path):
    """Simulates a machine without CUDA, whose CUDA_HOME is an empty folder."""
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
        # Newer than this nvcc: it emits PTX of the newest architecture it knows; the driver
        # compiles that.
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


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_nvcc_hands_flags_on_as_they_are(tmp_path, monkeypatch):
    linker = tmp_path / "linker"
    # nvcc calls its host compiler not only to link.
    linker.write_text('#!/bin/sh\nprintf "%s\\n" "$@" >> arguments\nexec c++ "$@"\n')
    linker.chmod(0o755)
    (tmp_path / "a.cpp").touch()
    flags = ["-Wl,-rpath,/a b", "-Wl,-rpath,$ORIGIN/c"]
    command = f"nvcc -ccbin {linker} -shared a.cpp -o a.so {cuda.host_flags(shlex.join(flags))}"
    lines = ["rule link", f"  command = {command}", "build a.so: link"]
    monkeypatch.delenv("NVCC_CCBIN", raising=False)
    ninja.run(tmp_path, lines, quiet=True).check_returncode()
    assert set(flags) <= set((tmp_path / "arguments").read_text().splitlines())
