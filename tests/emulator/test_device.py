"""The device in host memory detects launches that would fail on a GPU: planted faults."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import textwrap

import pytest
import torch

from building import ROOT
from tests.emulator.device import NAME

pytestmark = pytest.mark.emulated
# The faults of the planted copy in planted.cpp. The first value is a correct launch.
SOUND, NO_BLOCKS, BEYOND, BEFORE = range(4)
FAULTS = {
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


@pytest.mark.parametrize("whose", ["freed", "host"])
def test_memory_without_an_owner_is_caught(planted, values, whose):
    with pytest.raises(RuntimeError, match=f"loaded 4 bytes of {whose} memory"):
        planted.copy_unowned(values, whose == "host")


def test_an_arena_lends_what_it_owns(planted, values):
    assert torch.equal(planted.arena_copy(values, True), values)
    with pytest.raises(RuntimeError, match="an address that the arena does not own"):
        planted.arena_copy(values, False)


def test_a_block_too_few_leaves_nan(planted, values):
    assert torch.equal(planted.copy_once(values, 2), values)
    copied = planted.copy_once(values, 1)
    assert torch.equal(copied[:256], values[:256])
    assert copied[256:].isnan().all()


def test_an_error_is_not_blamed_on_the_next_launch(emulated_device, planted, values):
    with pytest.raises(RuntimeError, match="invalid grid"):
        planted.copy(values, NO_BLOCKS)
    assert emulated_device.last_error == 0
    assert torch.equal(planted.copy(values, SOUND), values)


@pytest.mark.parametrize("reverse", [False, True])
def test_every_thread_of_a_block_gets_its_sum(emulated_device, planted, reverse):
    emulated_device.set_order(reverse)
    values = torch.arange(64, dtype=torch.float64)
    once, twice = planted.block_sums(values.to(NAME)).cpu()
    assert once.eq(2016).all()
    assert twice.eq(2 * 2016).all()


FIRST_LAUNCHES = {
    "convolution": """
        for dtype in (torch.float32, torch.bfloat16):
            for groups in (1, 16):
                x = torch.ones(1, 16, 5, 5, device="emulated", dtype=dtype, requires_grad=True)
                w = torch.ones(16, 16 // groups, 3, 3, device="emulated", dtype=dtype)
                w.requires_grad_()
                y = capture(lambda: atrousx.ops.atrous_conv2d(x, w, padding=1, groups=groups))
                capture(lambda: torch.autograd.grad(y, (x, w), torch.ones_like(y)))
    """,
    "upsampling": """
        x = torch.ones(1, 2, 5, 5, device="emulated", requires_grad=True)
        y = capture(lambda: atrousx.ops.upsample_bilinear2d(x, (9, 9)))
        capture(lambda: torch.autograd.grad(y, x, torch.ones_like(y)))
    """,
    "mean field": """
        crf = atrousx.DenseCRF(2, iterations=2).to("emulated")
        image = torch.full((1, 3, 5, 5), 7.0, device="emulated")
        capture(lambda: crf(torch.ones(1, 2, 5, 5, device="emulated"), image))
    """,
}


@pytest.mark.parametrize("what", FIRST_LAUNCHES)
def test_first_launches_may_be_captured(what):
    """A kernel's code is loaded at its first use. A capture forbids that unless the thread allows
    it."""
    code = f"""
        import torch, atrousx
        from tests.emulator.device import add_device
        device = add_device()
        def capture(work):
            device.set_capturing(True)
            try:
                return work()
            finally:
                device.set_capturing(False)
        {FIRST_LAUNCHES[what]}
    """
    environment = {**os.environ, "ATROUSX_BACKEND": "native"}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]


def test_a_load_under_capture_is_refused():
    code = """
        import torch
        from tests.emulator.device import add_device
        device = add_device()
        values = torch.ones(5, device="emulated")
        device.set_capturing(True)
        torch.ops.atrousx_planted.copy_unowned(values, True)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "loaded while a stream is captured" in result.stderr


def test_shared_memory_needs_its_opt_in(planted, values):
    bytes = 64 * 1024
    with pytest.raises(RuntimeError, match=r"65536 bytes of dynamic shared memory, .* have 49152"):
        planted.shared(values, bytes, False)
    assert planted.shared(values, bytes, True).sum() == 64


def test_static_and_dynamic_memory_together_pass_48_kib(planted, values):
    # Each alone is below 48 KiB. Together they need the opt-in.
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


def test_memory_is_aligned_as_cuda_aligns_it_and_no_better(emulated_device):
    tensor = torch.ones(7, device=NAME)
    assert tensor.data_ptr() % 256 == 0
    assert tensor.data_ptr() % 512 != 0


def test_freed_memory_is_filled_with_nan(emulated_device):
    tensor = torch.ones(7, device=NAME)
    beside = torch.ones(7, device=NAME)  # keeps the page in use
    address = tensor.data_ptr()
    assert emulated_device.peek(address) == 1
    del tensor
    assert math.isnan(emulated_device.peek(address))
    assert beside.sum() == 7


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
