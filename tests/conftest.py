"""Fixtures of the whole test-suite."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from tests.emulator.device import EmulatedDevice

# The tests compare with PyTorch's convolution. In PyTorch 2.13 it writes out of bounds on CPUs with
# AMX: in bfloat16, for the gradient of a bias with few outputs.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
# The tests test atrousx's kernels, even where PyTorch's convolution would be faster. atrousx reads
# this variable on import, so nothing above may import atrousx.
os.environ["ATROUSX_BACKEND"] = "native"
# The measurements of one run must not affect another run.
os.environ["ATROUSX_CACHE"] = "0"
# Kernels are tested on two threads. On small machines tests run beside other tests, so small
# networks have one: a second would only wait for the first.
NETWORK_FOLDERS = (
    "benchmarks",
    "cli",
    "compat",
    "doctor",
    "examples",
    "metrics",
    "models",
    "training",
)
TESTS = Path(__file__).resolve().parent
torch.set_num_threads(min(2, os.cpu_count() or 1))
# On CUDA, float32 must also have float32 accuracy. Tests of TF32 change this switch themselves.
torch.backends.cudnn.allow_tf32 = False
# The device in host memory is slow. Its tests in these files and in tests/emulator always run;
# `make emulated` runs all of them. test_on_emulated.py compares every operator, pass and dtype with
# the CPU.
EMULATED_FILES = (
    "doctor/test_doctor.py",
    "doctor/test_on_emulated.py",
    "backend/test_emulated.py",
    "ops/atrous_conv2d/test_fused.py",
    "ops/test_fakes.py",
    "ops/test_mean_field.py",
    "ops/test_upsample_argmax.py",
    "ops/test_upsample_softmax_add.py",
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """Gives tests of small networks one thread, and ends what a test has changed."""
    before = torch.get_num_threads()
    if request.path.relative_to(TESTS).parts[0] in NETWORK_FOLDERS:
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def _devices(request: pytest.FixtureRequest) -> None:
    """Adds the device first, because PyTorch counts the devices at its first gradient."""
    if any(item.get_closest_marker("emulated") for item in request.session.items):
        from tests.emulator.device import add_device

        add_device()


@pytest.fixture(
    params=[
        "cpu",
        pytest.param("cuda", marks=pytest.mark.cuda),
        pytest.param("emulated", marks=pytest.mark.emulated),
    ],
)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device of this machine, and the one that runs CUDA code in host memory."""
    if request.param == "emulated":
        request.getfixturevalue("emulated_device")
    return torch.device(request.param)


@pytest.fixture
def emulated_device(request: pytest.FixtureRequest) -> EmulatedDevice:
    """The device in host memory. In half of the tests its threads run in reverse order."""
    from tests.emulator.device import add_device

    device = add_device()
    device.gpu = "H200"
    device.set_most_blocks(2**31 - 1)
    forced = os.environ.get("ATROUSX_EMULATED_ORDER")
    by_name = zlib.crc32(request.node.nodeid.encode()) % 2 == 1
    device.set_order(reverse=by_name if forced is None else forced == "reverse")
    return device


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cuda: needs a CUDA device")
    config.addinivalue_line("markers", "emulated: runs CUDA code in host memory")
    config.addinivalue_line("markers", "slow: takes more than 10 seconds on two cores")
    config.addinivalue_line("markers", "long: takes minutes; `make long` runs it")


def is_wanted(item: pytest.Item) -> bool:
    if item.get_closest_marker("cuda") is not None:
        return torch.cuda.is_available()
    if item.get_closest_marker("long") is not None:
        return os.environ.get("ATROUSX_LONG") == "1"
    if item.get_closest_marker("emulated") is None:
        return True
    file = item.path.relative_to(TESTS)
    always = file.parts[0] == "emulator" or file.as_posix() in EMULATED_FILES
    return always or os.environ.get("ATROUSX_EMULATED") == "all"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without a CUDA device its tests are deselected, not skipped: a skip would look like a
    problem."""
    kept = [item for item in items if is_wanted(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept
