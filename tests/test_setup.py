"""setup.py's choices: which compiler, which architectures, and what it says when it cannot."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.fixture
def setup_module(monkeypatch):
    for name in ("ATROUSX_CUDA", "CUDA_HOME", "CUDA_PATH", "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.delenv(name, raising=False)
    spec = importlib.util.spec_from_file_location("atrousx_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def no_nvcc(setup_module, monkeypatch, tmp_path):
    """A machine without CUDA, except that CUDA_HOME points at an empty folder."""
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(setup_module.shutil, "which", lambda _: None)
    monkeypatch.setattr(setup_module, "DEFAULT_CUDA_HOME", tmp_path / "usr-local-cuda")


def test_without_nvcc_the_cuda_library_is_left_out_and_said(setup_module, no_nvcc, capfd):
    assert setup_module.wanted_nvcc() is None
    assert "CUDA library: not built, no nvcc. Looked for: " in capfd.readouterr().err


def test_forced_cuda_without_nvcc_names_what_was_looked_for(
    setup_module, no_nvcc, monkeypatch, tmp_path
):
    monkeypatch.setenv("ATROUSX_CUDA", "1")
    with pytest.raises(SystemExit) as error:
        setup_module.wanted_nvcc()
    message = str(error.value)
    assert message.startswith("atrousx: ATROUSX_CUDA=1, but no nvcc. Looked for: ")
    for place in (tmp_path / "bin" / "nvcc", tmp_path / "usr-local-cuda" / "bin" / "nvcc"):
        assert str(place) in message
    assert "nvcc on the PATH" in message


def test_cuda_can_be_switched_off(setup_module, monkeypatch, capfd):
    monkeypatch.setenv("ATROUSX_CUDA", "0")
    assert setup_module.wanted_nvcc() is None
    assert "ATROUSX_CUDA=0" in capfd.readouterr().err


def test_other_values_are_refused(setup_module, monkeypatch):
    monkeypatch.setenv("ATROUSX_CUDA", "yes")
    with pytest.raises(SystemExit, match="ATROUSX_CUDA must be 0 or 1, got 'yes'"):
        setup_module.wanted_nvcc()


def test_architecture_list(setup_module, monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0 8.6;9.0a+PTX")
    listed = setup_module.cuda_architectures(Path("nvcc"))
    assert listed == ["8.0", "8.6", "9.0a+PTX"]
    assert setup_module.gencode_flags(listed) == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_86,code=sm_86",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_90a,code=compute_90a",
    ]


def test_wrong_architecture_is_named(setup_module):
    with pytest.raises(SystemExit, match="TORCH_CUDA_ARCH_LIST holds 'Hopper'"):
        setup_module.gencode_flags(["Hopper"])


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
def test_the_gpu_that_is_there_decides(setup_module, monkeypatch, capabilities, architectures):
    monkeypatch.setattr(setup_module, "known_codes", lambda _: KNOWN)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", capabilities.__getitem__)
    assert setup_module.cuda_architectures(Path("nvcc")) == architectures


def test_a_gpu_older_than_all_that_nvcc_knows_is_named(setup_module):
    with pytest.raises(SystemExit, match=r"no GPU of capability 7\.0"):
        setup_module.for_gpu(7, 0, KNOWN)


@pytest.mark.parametrize(
    ("known", "architectures"),
    [
        (KNOWN, ["8.0", "8.6", "9.0a", "10.0", "12.0+PTX"]),
        (KNOWN - {"sm_100", "sm_103", "sm_120"}, ["8.0", "8.6+PTX", "9.0a"]),
    ],
)
def test_by_default_common_gpus_and_those_to_come(setup_module, monkeypatch, known, architectures):
    monkeypatch.setattr(setup_module, "known_codes", lambda _: known)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert setup_module.cuda_architectures(Path("nvcc")) == architectures


@pytest.mark.parametrize("text", ["/opt/a b/nvcc", "/opt/é/$HOME'/x", 'say "8.0 9.0a"', "a:b"])
def test_a_word_reaches_the_command_as_it_is(setup_module, tmp_path, text):
    out = tmp_path / "out"
    (tmp_path / "build.ninja").write_text(
        f"rule say\n  command = printf %s {setup_module.word(text)} > $out\nbuild out: say\n",
        encoding="utf-8",
    )
    ninja = [sys.executable, "-m", "ninja", "-C", str(tmp_path), "--quiet"]
    subprocess.run(ninja, check=True)
    assert out.read_text(encoding="utf-8") == text
