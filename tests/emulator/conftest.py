"""The module of host-executed kernels, in both thread orders. No torch: see test_sanitizers."""

from __future__ import annotations

import os
from types import ModuleType

import pytest

from tests.emulator.build import load


@pytest.fixture(scope="session")
def emulator_module() -> ModuleType:
    return load(os.environ.get("ATROUSX_EMULATOR", "plain"))


@pytest.fixture(params=["forward", "reverse"])
def emulated(emulator_module: ModuleType, request: pytest.FixtureRequest) -> ModuleType:
    emulator_module.set_reverse(request.param == "reverse")
    # Asynchronous copies as late as CUDA may do them in one order, as early in the other.
    emulator_module.set_eager_copies(request.param == "reverse")
    return emulator_module
