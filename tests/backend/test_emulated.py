"""Measures on the device in host memory, as on a GPU. Tests which choices are kept, and that a
kernel which was broken on purpose is detected."""

from __future__ import annotations

import warnings

import pytest
import torch

import atrousx
from atrousx.backend import measure as measuring
from atrousx.backend import self_check
from atrousx.backend.geometry import FORWARD, GRAD_INPUT, GRAD_WEIGHT, PASSES
from atrousx.ops import multi_rate_conv2d, upsample_bilinear2d
from tests.backend.common import operands, step
from tests.emulator.device import NAME

pytestmark = pytest.mark.emulated


@pytest.fixture
def device(emulated_device):
    """The device. Its kernels are repaired afterwards."""
    atrousx.set_backend("measure")
    yield emulated_device
    emulated_device.break_kernels("")


def both(dtype=torch.float32):
    """Returns the operands on the CPU and on the device."""
    here = operands(dtype=dtype)
    return here, [t.detach().to(NAME).requires_grad_() for t in here]


def assert_agree(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.cpu(), e, rtol=1e-4, atol=1e-4)


def test_auto_measures_there(device, clock):
    atrousx.set_backend("auto")
    here, there = both()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = step(*there)
    assert_agree(found, step(*here))
    measured = {geometry.pass_ for geometry, _ in measuring.table if geometry.device == NAME}
    assert measured == set(PASSES)
    assert all(c.agrees for g, c in measuring.table if g.device == NAME)


@pytest.mark.parametrize(
    ("kernel", "pass_"),
    [
        ("gather_direct_kernel", FORWARD),
        ("gather_direct_kernel", GRAD_INPUT),
        ("grad_weight_direct_kernel", GRAD_WEIGHT),
    ],
)
def test_a_broken_kernel_is_found_out(device, clock, kernel, pass_):
    clock["native"] = 0.1  # much faster: without the fault it would be chosen
    here, there = both()
    device.break_kernels(kernel)
    with pytest.warns(RuntimeWarning, match=f"differ by .*, float32, {NAME}") as said:
        found = step(*there)
    assert_agree(found, step(*here))
    (choice,) = (c for g, c in measuring.table if (g.device, g.pass_) == (NAME, pass_))
    assert not choice.agrees
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the warning comes once
        assert_agree(step(*there), step(*here))
    assert len([w for w in said if f": {pass_} of a" in str(w.message)]) == 1


@pytest.mark.parametrize(
    ("kernel", "name"),
    [
        ("upsample_bilinear2d_forward_kernel", "upsample_bilinear2d"),
        ("upsample_bilinear2d_backward_kernel", "upsample_bilinear2d"),
        ("atrous_conv2d_gather_kernel", "multi_rate_conv2d"),
    ],
)
def test_what_is_not_measured_checks_itself(device, kernel, name):
    calls = {
        "upsample_bilinear2d": lambda x, w: upsample_bilinear2d(x, 19),
        "multi_rate_conv2d": lambda x, w: multi_rate_conv2d(x, [w, w], dilations=(1, 2)),
    }
    self_check.forget()
    x, w = torch.randn(1, 4, 9, 9).to(NAME), torch.randn(3, 4, 3, 3).to(NAME)
    device.break_kernels(kernel)
    try:
        with pytest.raises(RuntimeError, match=f"{name} is wrong on {NAME}"):
            calls[name](x, w)
    finally:
        self_check.forget()


def test_tf32_is_no_fault_and_has_a_check_of_its_own(device):
    """PyTorch's TF32 switch is on by default; conftest turns it off."""
    x, w = torch.randn(1, 24, 9, 9).to(NAME), torch.randn(32, 24, 3, 3).to(NAME)
    self_check.forget()
    before = torch.backends.cudnn.allow_tf32
    try:
        for tf32, broken in ((True, False), (False, False), (True, True)):
            torch.backends.cudnn.allow_tf32 = tf32
            if not broken:
                multi_rate_conv2d(x, [w, w], dilations=(1, 2))
                continue
            self_check.forget()
            device.break_kernels("atrous_conv2d_gather_tensorcore_kernel")
            with pytest.raises(RuntimeError, match=r"is wrong on .* \(0.01 is allowed\)"):
                multi_rate_conv2d(x, [w, w], dilations=(1, 2))
    finally:
        torch.backends.cudnn.allow_tf32 = before
        self_check.forget()
