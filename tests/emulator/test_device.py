"""The device in host memory catches what would go wrong on a GPU: launches with planted faults."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from tests.emulator.build import ROOT
from tests.emulator.device import NAME

pytestmark = pytest.mark.emulated
# What csrc's planted copy does wrong; its first value is a sound launch.
SOUND, FREED, HOST, NO_BLOCKS, BEYOND, BEFORE = range(6)
FAULTS = {
    "a temporary that was freed": (FREED, "loaded 4 bytes of freed memory"),
    "a host pointer": (HOST, "loaded 4 bytes of host memory"),
    "an empty grid": (NO_BLOCKS, "invalid grid of 0 blocks"),
    "an element too far": (BEYOND, "memory beyond the end of a tensor"),
    "an element too early": (BEFORE, "memory beyond the end of a tensor"),
}
STATIC_BYTES = 2560  # of the planted kernel
LIMIT_OF_RTX_4090 = 99 * 1024


@pytest.fixture
def planted(emulated_device):
    return torch.ops.atrousx_planted


@pytest.fixture
def values(emulated_device):
    return torch.arange(500.0, device=NAME)


def test_sound_launch(planted, values):
    assert torch.equal(planted.copy(values, SOUND), values)


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_caught(planted, values, fault):
    number, message = FAULTS[fault]
    with pytest.raises(RuntimeError, match=message):
        planted.copy(values, number)


def test_an_error_is_not_blamed_on_the_next_launch(planted, values):
    with pytest.raises(RuntimeError, match="invalid grid"):
        planted.copy(values, NO_BLOCKS)
    assert torch.equal(planted.copy(values, SOUND), values)


def test_shared_memory_needs_its_opt_in(planted, values):
    bytes = 64 * 1024
    with pytest.raises(RuntimeError, match=r"65536 bytes of dynamic shared memory, .* have 49152"):
        planted.shared(values, bytes, False)
    assert planted.shared(values, bytes, True).sum() == 64


def test_static_and_dynamic_memory_together_pass_48_kib(planted, values):
    # Each is less, and a launch that did not opt in could not have both.
    assert planted.shared(values, 48 * 1024 - 512, True).sum() == 64
    with pytest.raises(RuntimeError, match="51712 bytes of shared memory, where a block may have"):
        planted.shared(values, 48 * 1024, False)


def test_two_bytes_too_much_for_an_rtx_4090(emulated_device, planted, values):
    emulated_device.gpu = "RTX 4090"
    most = LIMIT_OF_RTX_4090 - STATIC_BYTES
    assert planted.shared(values, most, True).sum() == 64
    with pytest.raises(RuntimeError, match="101378 bytes of shared memory"):
        planted.shared(values, most + 2, True)


def test_misaligned_vector(planted, values):
    assert torch.equal(planted.vector(values, 4), values[4:8])
    with pytest.raises(RuntimeError, match="loaded 16 bytes of memory that is not aligned"):
        planted.vector(values, 1)


def test_mask_of_absent_lanes(planted, values):
    assert planted.mask(values, 0xFF).sum() == 40
    with pytest.raises(RuntimeError, match="a mask names lanes that the warp does not have"):
        planted.mask(values, 0xFFFFFFFF)


def test_freed_memory_is_filled_with_nan(emulated_device):
    # As cudaMalloc aligns, and no better.
    tensor = torch.ones(7, device=NAME)
    assert tensor.data_ptr() % 256 == 0
    assert tensor.data_ptr() % 512 != 0
    view = tensor.as_strided((7,), (1,))
    storage = tensor.untyped_storage()
    storage.resize_(0)
    assert view.untyped_storage().nbytes() == 0


def test_new_memory_is_filled_with_nan(emulated_device):
    assert torch.empty(7, device=NAME).isnan().all()


def test_host_code_cannot_follow_a_device_pointer():
    code = (
        "import torch; from tests.emulator.device import add_device; add_device();"
        "torch.ops.atrousx_planted.peek(torch.ones(3, device='emulated'))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True)
    assert result.returncode == -11, result.stderr


def test_a_block_has_so_many_registers(emulated_device):
    def upsampled():
        x = torch.ones(1, 1, 3, 3, device=NAME)
        return torch.ops.atrousx.upsample_bilinear2d(x, [9, 9], False, None, None)

    emulated_device.take_launched()
    assert upsampled().sum() == 81
    (name,) = emulated_device.take_launched().splitlines()
    try:
        emulated_device.set_registers(name, 1000)
        with pytest.raises(RuntimeError, match="registers in a block"):
            upsampled()
    finally:
        emulated_device.set_registers(name, 0)
    assert upsampled().sum() == 81


def test_no_such_gpu(emulated_device):
    with pytest.raises(ValueError, match="no such GPU: RTX 9999"):
        emulated_device.gpu = "RTX 9999"
