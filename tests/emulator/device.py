"""The device "emulated": the CUDA operators of ``csrc``, launchers included, in host memory.

:func:`add_device` compiles them with g++ and adds a device to PyTorch that runs them. Like
``cuda``, it has kernels, autocast rules, and the Python kernels for CUDA. ``GPU`` names the GPU
whose limits apply.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch.testing._internal.optests import generate_tests
from torch.utils._pytree import tree_leaves
from torch.utils.backend_registration import (
    generate_methods_for_privateuse1_backend,
    rename_privateuse1_backend,
)

import atrousx
from atrousx import _library
from building import ROOT
from tests.emulator.build import build_device

NAME = "emulated"


class EmulatedDevice:
    """The loaded library. It controls the order of the threads and the GPU whose limits apply."""

    def __init__(self, path: Path) -> None:
        # Symbols are global so that the launchers find the current stream by name.
        self._library = ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
        self._library.emulator_gpu.restype = ctypes.c_char_p
        self._library.emulator_take_launched.restype = ctypes.c_char_p
        self._library.emulator_peek.restype = ctypes.c_float

    def set_order(self, reverse: bool) -> None:
        """Sets the order. False: warps and lanes first to last, copies as late as possible. True:
        last to first, copies at once."""
        self._library.emulator_set_order(ctypes.c_bool(reverse), ctypes.c_bool(reverse))

    @property
    def gpu(self) -> str:
        return self._library.emulator_gpu().decode()

    @gpu.setter
    def gpu(self, name: str) -> None:
        if not self._library.emulator_set_gpu(name.encode()):
            raise ValueError(f"no such GPU: {name}")

    def take_launched(self) -> str:
        """Returns the kernels launched since the last call: names with template arguments."""
        return self._library.emulator_take_launched().decode()

    def set_most_blocks(self, count: int) -> None:
        """Limits the grid. Larger grids are cut; kernels loop over the remaining jobs."""
        self._library.emulator_set_most_blocks(ctypes.c_uint(count))

    def break_kernels(self, part_of_name: str) -> None:
        """Makes kernels with this text in their names skip their last block. "" ends this."""
        self._library.emulator_break_kernels(part_of_name.encode())

    @property
    def last_error(self) -> int:
        """The error that cudaGetLastError would return. It is not cleared."""
        return self._library.emulator_last_error()

    def set_capturing(self, whether: bool) -> None:
        """Simulates the capture of a stream, during which no kernel can be loaded."""
        self._library.emulator_set_capturing(ctypes.c_bool(whether))

    def peek(self, address: int) -> float:
        """Returns the float32 at an address of the device, also in freed memory."""
        return self._library.emulator_peek(ctypes.c_void_p(address))

    def write_counters(self) -> None:
        """Writes gcov's counters; only in the library that ``coverage.py`` builds."""
        self._library.emulator_write_counters()

    def set_registers(self, kernel: str, count: int) -> None:
        self._library.emulator_set_registers(kernel.encode(), count)


def _module() -> types.ModuleType:
    """Returns the module that PyTorch uses as ``torch.<device type>``."""
    module: Any = types.ModuleType(f"torch.{NAME}")
    module.is_available = lambda: True
    module.device_count = lambda: 1
    module.current_device = lambda: 0
    module.set_device = lambda device: None
    module.device = lambda device: contextlib.nullcontext()
    module.synchronize = lambda device=None: None
    module.is_initialized = lambda: True
    module._is_in_bad_fork = lambda: False
    module.manual_seed_all = lambda seed: None
    module.get_rng_state = lambda device=None: torch.get_rng_state()
    module.set_rng_state = lambda state, device=None: torch.set_rng_state(state)
    module.get_amp_supported_dtype = lambda: [torch.float16, torch.bfloat16]
    return cast(types.ModuleType, module)


def registers_of_kernels() -> dict[str, int]:
    """Returns the registers of each kernel by its mangled name: the most that ptxas reported for
    any architecture."""
    counts: dict[str, int] = {}
    pattern = r"Compiling entry function '(\S+)'.*?Used (\d+) registers"
    for report in (ROOT / "build" / "ninja" / "_cuda").rglob("*.ptxas"):
        for name, count in re.findall(pattern, report.read_text(), re.DOTALL):
            counts[name] = max(counts.get(name, 0), int(count))
    return counts


def _check_of_other_devices(check: Callable[..., None]) -> Callable[..., None]:
    """Disables opcheck's check of the registered gradient, which does not know this device."""

    @functools.wraps(check)
    def wrapper(op: Any, args: Any, kwargs: Any) -> None:
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        if all(t.device.type != NAME for t in tensors):
            check(op, args, kwargs)

    return wrapper


@functools.cache
def add_device() -> EmulatedDevice:
    """Creates the device, once per process."""
    assert atrousx.ops  # every operator is registered
    rename_privateuse1_backend(NAME)
    torch._register_device_module(NAME, _module())
    device = EmulatedDevice(build_device(os.environ.get("ATROUSX_EMULATED_DEVICE", "plain")))
    checks: Any = generate_tests
    checks.autograd_registration_check = _check_of_other_devices(checks.autograd_registration_check)
    generate_methods_for_privateuse1_backend(unsupported_dtype=[])
    _library.add_gpu_type(NAME, "PrivateUse1")
    for kernel, count in registers_of_kernels().items():
        device.set_registers(kernel, count)
    return device
