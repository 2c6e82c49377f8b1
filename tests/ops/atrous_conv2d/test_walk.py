"""Depthwise 3x3 in channels_last: the CPU kernel goes along pixels that lie the dilation apart."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from atrousx.ops import atrous_conv2d
from tests.ops.atrous_conv2d.cases import backward_input_op, fused_op
from tests.ops.common import (
    FLOATING,
    assert_as_accurate_as_torch,
    assert_same_bits_with_any_threads,
    to_float64,
)
from tests.reference import atrous_conv2d as reference

# (H, W), (KH, KW), padding, dilation.
GEOMETRIES = {
    "one pixel": ((1, 1), (3, 3), (1, 1), (1, 1)),
    "two pixels": ((2, 2), (3, 3), (1, 1), (1, 1)),
    "phases of three and two": ((5, 5), (3, 3), (2, 2), (2, 2)),
    "phases of four and three": ((7, 11), (3, 3), (2, 3), (2, 3)),
    "phases of five": ((9, 10), (3, 3), (3, 2), (3, 2)),
    "dilation larger than the map": ((4, 3), (3, 3), (5, 7), (5, 7)),
    "unequal dilations": ((6, 9), (3, 3), (1, 4), (1, 4)),
    "no padding": ((7, 9), (3, 3), (0, 0), (3, 2)),
    "less padding than dilation": ((8, 7), (3, 3), (1, 1), (3, 3)),
    "more padding than dilation": ((3, 4), (3, 3), (4, 9), (1, 2)),
    "a row of taps": ((4, 6), (1, 3), (0, 2), (3, 2)),
    "two rows of taps": ((5, 6), (2, 3), (2, 1), (4, 1)),
    # These are long enough for float32 and float64, too.
    "phases of six and five": ((9, 16), (3, 3), (3, 3), (3, 3)),
    "long, unequal dilations": ((6, 21), (3, 3), (2, 4), (2, 4)),
    "long, no padding": ((9, 16), (3, 3), (0, 0), (3, 2)),
    "long, less padding than dilation": ((8, 20), (3, 3), (1, 1), (3, 3)),
    "long, rows wholly dead": ((2, 9), (3, 3), (9, 1), (7, 1)),
    "five rows of taps": ((6, 6), (5, 3), (2, 1), (1, 1)),
}
# Less than a vector, whole vectors, vectors and a remainder, several tasks.
CHANNELS = (1, 7, 16, 33, 70, 728)


def make(name, channels, dtype, device):
    """Returns a batch of two between images of NaN, which nothing may read; the other arguments."""
    size, taps, padding, dilation = GEOMETRIES[name]
    x = torch.full((4, channels, *size), torch.nan, dtype=dtype, device=device)
    x = x.to(memory_format=torch.channels_last)
    x[1:3] = torch.randn(2, channels, *size, dtype=dtype)
    w = torch.randn(channels, 1, *taps, dtype=dtype, device=device)
    b = torch.randn(channels, dtype=dtype, device=device)
    return x[1:3], w, b, ((1, 1), (*padding, *padding), dilation, channels)


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_walks_against_oracle(device, name, dtype):
    for channels in CHANNELS if "four" in name else CHANNELS[:-1]:
        x, w, b, (stride, sides, dilation, groups) = make(name, channels, dtype, device)
        geometry = (stride, sides, dilation, groups)
        torch_result = F.conv2d(x, w, b, stride, sides[:2], dilation, groups)
        exact = reference.forward(*map(to_float64, (x, w, b)), *geometry)
        actual = fused_op(x, w, b, None, False, *geometry)
        assert_as_accurate_as_torch(actual, torch_result, exact)
        assert actual.is_contiguous(memory_format=torch.channels_last)
        actual = fused_op(x, w, b, None, True, *geometry)
        assert_as_accurate_as_torch(actual, torch_result.relu(), exact.clip(0))

        grad = torch.full((4, *actual.shape[1:]), torch.nan, dtype=dtype, device=device)
        grad = grad.to(memory_format=torch.channels_last)
        grad[1:3] = torch.randn_like(actual)
        grad = grad[1:3]
        exact = reference.backward_input(to_float64(grad), to_float64(w), x.shape[2:], *geometry)
        torch_result = torch.nn.grad.conv2d_input(
            x.shape, w, grad.contiguous(), stride, sides[:2], dilation, groups
        )
        actual = backward_input_op(grad, w, list(x.shape), *geometry)
        assert_as_accurate_as_torch(actual, torch_result, exact)


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_walks_never_multiply_padding(device, name, dtype):
    # In each channel another tap is infinite. The rest of the sum is finite.
    x, w, _, (stride, sides, dilation, groups) = make(name, 70, dtype, device)
    w.fill_(1)
    taps = w[0].numel()
    for channel in range(groups):
        w.view(groups, taps)[channel, channel % taps] = torch.inf
    ones, infinite = torch.ones_like(x), (w == torch.inf).double()
    y = atrous_conv2d(ones, w, None, stride, sides[:2], dilation, groups, backend="native")
    touched = F.conv2d(ones.double(), infinite, None, stride, sides[:2], dilation, groups) > 0
    assert torch.equal(y == torch.inf, touched)
    assert y[~touched].isfinite().all()
    grad = torch.ones_like(y)
    gx = backward_input_op(grad, w, list(x.shape), stride, sides, dilation, groups)
    touched = (
        torch.nn.grad.conv2d_input(
            x.shape, infinite, grad.double(), stride, sides[:2], dilation, groups
        )
        > 0
    )
    assert torch.equal(gx == torch.inf, touched)
    assert gx[~touched].isfinite().all()


@pytest.mark.parametrize("dtype", FLOATING)
def test_walks_keep_what_is_not_finite(device, dtype):
    # The result is the same as PyTorch's, whose padding meets only finite weights.
    x, w, b, (stride, sides, dilation, groups) = make("phases of five", 70, dtype, device)
    x[0, :, 4, 5], x[1, :35, 2, 3], x[1, 35:, 2, 3] = torch.nan, torch.inf, -torch.inf
    torch_result = F.conv2d(x, w, b, stride, sides[:2], dilation, groups)
    for relu in (False, True):
        actual = fused_op(x, w, b, None, relu, stride, sides, dilation, groups)
        expected = torch_result.relu() if relu else torch_result
        assert torch.equal(actual.isnan(), expected.isnan())
        assert torch.equal(actual == torch.inf, expected == torch.inf)
        assert torch.equal(actual == -torch.inf, expected == -torch.inf)


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("channels", [33, 728])
def test_walks_have_the_same_bits_with_any_threads(channels, dtype):
    x = torch.randn(3, channels, 13, 11, dtype=dtype).to(memory_format=torch.channels_last)
    w = torch.randn(channels, 1, 3, 3, dtype=dtype)
    assert_same_bits_with_any_threads(
        lambda: atrous_conv2d(
            x, w, padding=2, dilation=2, groups=channels, backend="native"
        ).flatten()
    )
