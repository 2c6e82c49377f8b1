"""setup.py's choices: which compiler, which architectures, and what it says when it cannot."""

from __future__ import annotations

import importlib.util
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


def test_the_gpu_that_is_there_decides(setup_module, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    capabilities = [(8, 6), (9, 0)]
    monkeypatch.setattr(torch.cuda, "get_device_capability", capabilities.__getitem__)
    assert setup_module.cuda_architectures(Path("nvcc")) == ["8.6", "9.0a"]
