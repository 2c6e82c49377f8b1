"""Tests variants of atrous_conv2d's CUDA kernels that a launcher chooses by the GPU."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.emulator.device import NAME
from tests.ops.atrous_conv2d.cases import (
    backward_input_op,
    backward_weight_op,
    forward_op,
    fused_op,
    make,
)
from tests.ops.common import FORMATS, assert_as_accurate_as_torch, to_float64
from tests.reference import atrous_conv2d as reference

pytestmark = pytest.mark.emulated

# N, C, K, (H, W), (KH, KW), padding, dilation. Each has more than 64 channels and outputs, and four
# tiles of 128 pixels by 128 channels, which fill a GPU with one multiprocessor.
WIDE_TILES = {
    "72 channels": (1, 72, 72, (8, 49), (1, 3), (0, 3), (1, 3)),
    "one full tile of channels": (4, 136, 128, (1, 100), (1, 2), (0, 1), (1, 2)),
    "odd channels, dead pixels": (1, 67, 131, (2, 200), (2, 1), (2, 0), (3, 1)),
}


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", WIDE_TILES)
def test_wide_tiles(emulated_device, name, dtype, memory_format):
    emulated_device.gpu = "one multiprocessor"
    batch, channels, outputs, size, taps, padding, dilation = WIDE_TILES[name]
    geometry = ((1, 1), (*padding, *padding), dilation, 1)
    x = torch.randn(batch, channels, *size).to(NAME, dtype).to(memory_format=memory_format)
    w = (torch.randn(outputs, channels, *taps) / 12).to(NAME, dtype)
    b = torch.randn(outputs).to(NAME, dtype)
    exact = reference.forward(*map(to_float64, (x, w, b)), *geometry)
    residual = torch.randn(exact.shape).to(NAME, dtype)
    exact = (exact + to_float64(residual)).clip(0)
    emulated_device.take_launched()
    y = fused_op(x, w, b, residual, True, *geometry, True)
    grad = torch.randn_like(y)
    gx = backward_input_op(grad, w, x.shape, *geometry, True)
    element = {torch.float16: "Half", torch.bfloat16: "BFloat16", torch.float32: "float"}[dtype]
    assert f"{element}, 128>" in emulated_device.take_launched()
    exact_gx = reference.backward_input(*map(to_float64, (grad, w)), size, *geometry)
    if dtype == torch.float32:  # the operands were rounded to TF32
        for actual, expected in ((y, exact), (gx, exact_gx)):
            assert (abs(to_float64(actual) - expected)).max() < 2e-3 * abs(expected).max()
        return
    torch_result = (F.conv2d(x, w, b, 1, padding, dilation) + residual).relu()
    assert_as_accurate_as_torch(y, torch_result, exact)
    torch_result = torch.nn.grad.conv2d_input(x.shape, w, grad, 1, padding, dilation)
    assert_as_accurate_as_torch(gx, torch_result, exact_gx)


# On a GPU with 64 KiB: as many planes at once as registers allow, one plane, none.
@pytest.mark.parametrize(
    ("dtype", "size", "kernel"),
    [
        (torch.float32, (20, 30), "depthwise_planes_kernel<float, 4>"),
        (torch.float32, (64, 80), "depthwise_planes_kernel<float, 1>"),
        (torch.bfloat16, (96, 96), "depthwise_planes_kernel<c10::BFloat16, 1>"),
        (torch.float64, (64, 80), "depthwise_planes_kernel<double, 1>"),
        (torch.float64, (96, 96), "gather_direct_kernel<double>"),
    ],
)
def test_planes_that_fill_shared_memory(emulated_device, dtype, size, kernel):
    emulated_device.gpu = "little shared memory"
    geometry = ((1, 1), (3, 2, 3, 2), (3, 2), 3)
    x = torch.randn(1, 3, *size).to(NAME, dtype)
    w = torch.randn(3, 1, 3, 3).to(NAME, dtype)
    grad = torch.randn_like(x)
    results = []
    for gpu in ("little shared memory", "H200"):
        emulated_device.gpu = gpu
        emulated_device.take_launched()
        y = forward_op(x, w, None, *geometry)
        assert (kernel in emulated_device.take_launched()) == (gpu != "H200" or size == (20, 30))
        results.append(
            (
                y,
                backward_input_op(grad, w, x.shape, *geometry),
                backward_weight_op(grad, x, w.shape, *geometry),
            )
        )
    # Each kernel sums in its own order.
    torch.testing.assert_close(*results)
    exact = reference.forward(to_float64(x), to_float64(w), None, *geometry)
    assert_as_accurate_as_torch(results[0][0], F.conv2d(x, w, None, 1, (3, 2), (3, 2), 3), exact)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("72 channels", torch.float16),
        ("many pixels", torch.float32),
        ("many pixels", torch.float16),
        ("many pixels, depthwise", torch.float16),
        ("narrow groups", torch.float32),
    ],
)
def test_same_bits_with_any_number_of_blocks_in_any_order(
    emulated_device, name, dtype, memory_format
):
    x, w, b, (stride, padding, dilation, groups) = make(name, dtype, NAME, memory_format)
    geometry = (stride, (*padding, *padding), dilation, groups)
    results = []
    for blocks, reverse in ((1, False), (2, True), (3, True)):
        emulated_device.set_most_blocks(blocks)
        emulated_device.set_order(reverse)
        y = forward_op(x, w, b, *geometry)
        grad = y.detach().sign()
        gradients = (
            backward_input_op(grad, w, x.shape, *geometry),
            backward_weight_op(grad, x, w.shape, *geometry),
        )
        results.append((y, *gradients))
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(
    ("name", "algorithm", "kernel"),
    [
        ("plain", 0, "atrous_conv2d_gather_kernel"),
        ("depthwise, 16 channels", 2, "depthwise"),
        ("narrow groups", 3, "gather_direct_kernel"),
    ],
)
def test_the_algorithm_that_is_told_is_the_one_that_runs(
    emulated_device, name, algorithm, kernel, memory_format
):
    x, w, _, (stride, padding, dilation, groups) = make(name, torch.float32, NAME, memory_format)
    geometry = (stride, (*padding, *padding), dilation, groups)
    channels_last = memory_format == torch.channels_last
    tell = torch.ops.atrousx._atrous_conv2d_algorithm.default
    emulated_device.take_launched()
    y = forward_op(x, w, None, *geometry)
    assert kernel in emulated_device.take_launched()
    backward_input_op(y, w, x.shape, *geometry)
    backward_weight_op(y, x, w.shape, *geometry)
    assert ("depthwise" in emulated_device.take_launched()) == (algorithm == 2)
    for number in range(3):
        told = tell(x, number, x.shape, w.shape, *geometry, channels_last, False, False)
        assert told == [algorithm]
