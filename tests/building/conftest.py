"""Removes the caller's environment variables that choose what is built."""

from __future__ import annotations

import pytest

from building import cuda


@pytest.fixture(autouse=True)
def _no_choices(monkeypatch):
    for name in ("ATROUSX_CUDA", "CUDA_HOME", "CUDA_PATH", "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.delenv(name, raising=False)
    cuda.wanted_nvcc.cache_clear()
