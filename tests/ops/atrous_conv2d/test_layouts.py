"""Any strides and memory formats, empty tensors, determinism."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from atrousx.ops import atrous_conv2d
from tests.ops.atrous_conv2d.cases import (
    KINDS,
    backward_weight_op,
    make,
)
from tests.ops.common import (
    FORMATS,
    assert_as_accurate_as_torch,
    assert_same_bits_with_any_threads,
    strided_views,
    to_float64,
)


@pytest.mark.parametrize("name", ["rate 6 on a small map", "depthwise"])
def test_any_strides(device, name):
    x, w, _, options = make(name, torch.float64, device)
    expected = F.conv2d(x, w, None, *options)
    for a, b in zip(strided_views(x), strided_views(w), strict=True):
        torch.testing.assert_close(atrous_conv2d(a, b, None, *options), expected)
    broadcast = x[:1].expand(3, -1, -1, -1)
    torch.testing.assert_close(atrous_conv2d(broadcast, w, None, *options)[2], expected[0])
    # The gradient from .sum().backward() is expanded: it has zero strides.
    for convolve in (atrous_conv2d, F.conv2d):
        leaves = [t.clone().requires_grad_() for t in (x, w)]
        convolve(*leaves, None, *options).sum().backward()
        expected = [t.grad for t in leaves] if convolve is atrous_conv2d else expected
    torch.testing.assert_close(expected, [t.grad for t in leaves])


@pytest.mark.parametrize("outputs", [2, 21, 32])
@pytest.mark.parametrize("size", [(23, 37), (32, 32)])
def test_planes_are_read_where_they_lie(device, outputs, size):
    # For few outputs the CPU does not pack NCHW maps, except planes that are multiples of half a
    # page.
    whole = torch.randn(2, 140, *size, device=device)
    for x in (whole, whole[:, 3:138], whole[..., 2:20, 1:30], whole[:1].expand(3, -1, -1, -1)):
        w = torch.randn(outputs, x.shape[1], 3, 2, device=device)
        options = (torch.randn(outputs, device=device), (1, 2), (6, 3), (6, 5))
        actual, torch_result = (f(x, w, *options) for f in (atrous_conv2d, F.conv2d))
        exact = F.conv2d(x.double(), w.double(), options[0].double(), *options[1:])
        assert_as_accurate_as_torch(actual, torch_result, to_float64(exact))


@pytest.mark.parametrize("channels", [5, 8, 131])
def test_any_strides_in_bfloat16(device, channels):
    # With small integers every sum is exact, in any order and with any pairing.
    def integers(*size):
        return torch.randint(-2, 3, size, device=device).to(torch.bfloat16)

    w = integers(36, channels, 2, 3)
    x = integers(2, channels + 1, 7, 9)
    maps = [*strided_views(x[:, 1:]), x[:, 1:], x[:, :1].expand(-1, channels, -1, -1)]
    maps.append(x[:, 1:, :, :1].expand(-1, -1, -1, 9))
    filters = [*strided_views(w), w.transpose(0, 1).contiguous().transpose(0, 1)]
    filters.append(w[:, :1].expand(-1, channels, -1, -1))
    for a, b in [*((a, w) for a in maps), *((x[:, 1:], b) for b in filters)]:
        results = []
        for convolve, dtype in ((atrous_conv2d, torch.bfloat16), (F.conv2d, torch.float64)):
            leaves = [t.to(dtype).detach().requires_grad_() for t in (a, b)]
            y = convolve(*leaves, None, 1, (1, 2), 2)
            grads = torch.autograd.grad(y, leaves, torch.ones_like(y))
            results.append([t.to(torch.bfloat16) for t in (y, *grads)])
        torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_memory_format_of_either_operand(device, memory_format):
    x, w = torch.randn(1, 8, 5, 6, device=device), torch.randn(9, 8, 3, 3, device=device)
    for a, b in ((x.to(memory_format=memory_format), w), (x, w.to(memory_format=memory_format))):
        assert atrous_conv2d(a, b).stride() == F.conv2d(a, b).stride()


def test_unbatched(device):
    x, w, b, options = make("groups", torch.float64, device)
    result = atrous_conv2d(x[0], w, b, *options)
    torch.testing.assert_close(result, F.conv2d(x[0], w, b, *options))


def test_empty_batch_and_no_channels(device):
    x = torch.randn(0, 8, 5, 5, device=device, requires_grad=True)
    w = torch.randn(9, 8, 3, 3, device=device, requires_grad=True)
    result = atrous_conv2d(x, w, padding=1)
    assert result.shape == (0, 9, 5, 5)
    result.sum().backward()
    assert x.grad.shape == x.shape
    assert torch.equal(w.grad, torch.zeros_like(w))
    nothing, bias = torch.randn(1, 0, 5, 5, device=device), torch.ones(9, device=device)
    result = atrous_conv2d(nothing, torch.randn(9, 0, 3, 3, device=device), bias)
    assert torch.equal(result, torch.ones(1, 9, 3, 3, device=device))


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_grad_weight_of_an_empty_batch_is_zero(device, kind, memory_format):
    channels, outputs, groups, dtype = KINDS[kind]
    x = torch.empty(0, channels, 5, 5, device=device, dtype=dtype).to(memory_format=memory_format)
    grad = torch.empty(0, outputs, 5, 5, device=device, dtype=dtype)
    size = (outputs, channels // groups, 3, 3)
    result = backward_weight_op(grad, x, size, (1, 1), (1, 1, 1, 1), (1, 1), groups)
    assert torch.equal(result, torch.zeros(size, device=device, dtype=dtype))


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(
    ("groups", "outputs", "stride"), [(1, 120, 1), (60, 120, 1), (60, 60, 1), (60, 60, 2)]
)
def test_deterministic(memory_format, groups, outputs, stride):
    x = torch.randn(2, 60, 33, 31).to(memory_format=memory_format).requires_grad_()
    w = torch.randn(outputs, 60 // groups, 3, 3, requires_grad=True)

    def run():
        return atrous_conv2d(x, w, None, stride, 6, 6, groups)

    grad = torch.randn_like(run())

    assert_same_bits_with_any_threads(run)
    for leaf in (x, w):
        assert_same_bits_with_any_threads(
            lambda leaf=leaf: torch.autograd.grad(run(), leaf, grad)[0]
        )
