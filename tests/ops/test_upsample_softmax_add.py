"""ops.upsample_softmax_add_: literal case, reference, contract, rejections."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from atrousx.ops import upsample_softmax_add_
from tests.ops.common import (
    FLOATING,
    FORMATS,
    assert_as_accurate_as_torch,
    assert_same_bits_with_any_threads,
    strided_views,
    to_float64,
)
from tests.reference import upsample_softmax_add as reference

operator = torch.ops.atrousx._upsample_softmax_add_.default
SIZES = [((2, 3), (5, 7)), ((7, 5), (3, 2)), ((1, 1), (4, 3)), ((9, 9), (65, 133))]


def test_mean_of_two_by_hand(device):
    # Odds of 3 : 1 on the left and even odds on the right; then the mirror image.
    logits = torch.tensor([[[[math.log(3.0), 0.0]], [[0.0, 0.0]]]], device=device)
    mean = torch.zeros(1, 2, 1, 2, device=device)
    assert upsample_softmax_add_(mean, logits, 1 / 2) is mean
    expected = torch.tensor([[[[0.375, 0.25]], [[0.125, 0.25]]]], device=device)
    torch.testing.assert_close(mean, expected)
    upsample_softmax_add_(mean, logits.flip(-1), 1 / 2, flip=True)
    torch.testing.assert_close(mean, 2 * expected)


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("small", "large"), SIZES)
def test_against_oracle(device, small, large, flip, align_corners, memory_format, dtype):
    logits = 3 * torch.randn(2, 6, *small)
    logits = logits.to(device, dtype).to(memory_format=memory_format)
    computed = torch.float64 if dtype == torch.float64 else torch.float32
    before = torch.rand(2, 6, *large, dtype=computed, device=device)
    before = before.to(memory_format=memory_format)
    actual = upsample_softmax_add_(
        before.clone(), logits, 0.3, flip=flip, align_corners=align_corners
    )
    wide = logits.to(computed)
    values = F.interpolate(wide, large, mode="bilinear", align_corners=align_corners)
    torch_result = before + 0.3 * (values.flip(-1) if flip else values).softmax(1)
    exact = reference.probabilities(to_float64(logits), large, flip, align_corners)
    assert_as_accurate_as_torch(actual, torch_result, to_float64(before) + 0.3 * exact)


@pytest.mark.parametrize("flip", [False, True])
def test_any_strides(device, flip):
    logits = torch.randn(2, 3, 4, 5, device=device)
    expected = upsample_softmax_add_(torch.zeros(2, 3, 7, 9, device=device), logits, flip=flip)
    for view in strided_views(logits):
        result = upsample_softmax_add_(torch.zeros_like(expected), view, flip=flip)
        torch.testing.assert_close(result, expected)
    for sum in strided_views(torch.zeros_like(expected)):
        torch.testing.assert_close(upsample_softmax_add_(sum, logits, flip=flip), expected)
    # The sum is part of a larger map, whose other values must not change.
    around = torch.zeros(2, 3, 9, 11, device=device)
    upsample_softmax_add_(around[:, :, 1:-1, 1:-1], logits, flip=flip)
    torch.testing.assert_close(around, F.pad(expected, (1, 1, 1, 1)))


def test_empty_batch(device):
    sum = torch.zeros(0, 3, 8, 8, device=device)
    assert upsample_softmax_add_(sum, torch.zeros(0, 3, 2, 2, device=device)) is sum


def test_extreme_logits(device):
    logits = torch.tensor([1e30, -1e30, 0.0], device=device).reshape(1, 3, 1, 1)
    result = upsample_softmax_add_(torch.zeros(1, 3, 2, 2, device=device), logits)
    assert torch.equal(result[0, :, 0, 0], torch.tensor([1.0, 0.0, 0.0], device=device))


def test_deterministic():
    logits, before = torch.randn(2, 5, 33, 31), torch.rand(2, 5, 129, 65)
    assert_same_bits_with_any_threads(lambda: upsample_softmax_add_(before.clone(), logits))


@pytest.mark.parametrize("memory_format", FORMATS)
def test_opcheck(device, memory_format):
    logits = torch.randn(2, 3, 4, 5, device=device).to(memory_format=memory_format)
    torch.library.opcheck(
        operator, (torch.zeros(2, 3, 9, 7, device=device), logits, 0.5, True, False)
    )


def test_compile(device):
    def mean(logits):
        sum = logits.new_zeros(1, 3, 8, 9)
        for flip in (False, True):
            upsample_softmax_add_(sum, logits, 0.5, flip=flip)
        return 2 * sum

    logits = torch.randn(1, 3, 4, 5, device=device)
    compiled = torch.compile(mean, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(logits), mean(logits))


def test_autocast_and_gradient_mode(device):
    logits = torch.randn(1, 3, 4, 4, device=device, requires_grad=True)
    sum = torch.zeros(1, 3, 8, 8, device=device)
    with torch.autocast(device.type, torch.bfloat16):
        upsample_softmax_add_(sum, logits)
    assert not sum.requires_grad
    torch.testing.assert_close(sum.sum(1), torch.ones(1, 8, 8, device=device))


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"logits": [1.0]}, TypeError, "logits must be a torch.Tensor, got list"),
        ({"logits": torch.ones(1, 2, 2)}, ValueError, r"\[N, C, H, W\].*\(1, 2, 2\)"),
        ({"logits": torch.ones(1, 2, 0, 2)}, ValueError, "logits must have non-empty"),
        ({"sum": None}, TypeError, "sum must be a torch.Tensor, got NoneType"),
        ({"sum": torch.ones(2, 4, 4)}, ValueError, r"\[N, C, OH, OW\].*\(2, 4, 4\)"),
        ({"sum": torch.ones(1, 3, 4, 4)}, ValueError, r"N and C of logits \(1, 2\)"),
        ({"sum": torch.ones(1, 2, 0, 4)}, ValueError, "and a size"),
        ({"sum": torch.ones(1, 2, 4, 4).half()}, TypeError, "sum must be float32 for float32"),
        ({"logits": torch.ones(1, 2, 2, 2).double()}, TypeError, "must be float64 for float64"),
        (
            {"sum": torch.ones(1, 2, 4, 4, device="meta")},
            RuntimeError,
            "device of logits .cpu., got meta",
        ),
        ({"sum": torch.ones(1, 2, 4, 4, requires_grad=True)}, RuntimeError, "require a gradient"),
        ({"sum": torch.ones(1, 2, 1, 1).expand(1, 2, 4, 4)}, RuntimeError, "share memory"),
    ],
)
def test_rejections(kwargs, error, message):
    arguments = {"sum": torch.ones(1, 2, 4, 4), "logits": torch.ones(1, 2, 2, 2), **kwargs}
    with pytest.raises(error, match=message):
        upsample_softmax_add_(**arguments)


@pytest.mark.parametrize(
    "sum", [torch.ones(1, 3, 4, 4), torch.ones(2, 4, 4), torch.ones(1, 2, 4, 4).double()]
)
def test_direct_calls_cannot_write_out_of_bounds(sum):
    with pytest.raises(RuntimeError):
        operator(sum, torch.ones(1, 2, 2, 2), 1.0, False, False)
