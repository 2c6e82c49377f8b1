"""Literal cases, the float64 oracle, gradcheck."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import atrousx
from atrousx.ops import atrous_conv2d
from tests.ops.atrous_conv2d.cases import (
    CASES,
    CONTIGUOUS,
    WIDE,
    make,
)
from tests.ops.common import (
    FLOATING,
    FORMATS,
    assert_as_accurate_as_torch,
    to_float64,
)
from tests.optional import given, settings, st
from tests.reference import atrous_conv2d as reference


def test_our_own_kernels_are_tested():
    assert atrousx.get_backend() == "native"


def test_by_hand(device):
    # Two taps 2 apart and one pixel of padding: 10 + 2, 20 + 3, ... The ends have one live tap.
    row = torch.tensor([[[[1.0, 2.0, 3.0]]]], device=device)
    taps = torch.tensor([[[[10.0, 1.0]]]], device=device)
    result = atrous_conv2d(row, taps, torch.tensor([0.5], device=device), 1, (0, 1), (1, 2))
    assert result.tolist() == [[[[2.5, 13.5, 20.5]]]]


def test_gradients_by_hand(device):
    row = torch.tensor([[[[1.0, 2.0, 3.0]]]], device=device, requires_grad=True)
    taps = torch.tensor([[[[10.0, 1.0]]]], device=device, requires_grad=True)
    bias = torch.zeros(1, device=device, requires_grad=True)
    result = atrous_conv2d(row, taps, bias, padding=(0, 1), dilation=(1, 2))
    result.backward(torch.tensor([[[[1.0, 100.0, 10000.0]]]], device=device))
    assert row.grad.tolist() == [[[[1000.0, 100001.0, 100.0]]]]
    assert taps.grad.tolist() == [[[[1 * 100 + 2 * 10000, 2 * 1 + 3 * 100]]]]
    assert bias.grad.tolist() == [10101.0]


def test_same_pads_the_odd_pixel_below_and_right(device):
    row = torch.tensor([[[[1.0, 2.0, 3.0]]]], device=device)
    taps = torch.tensor([[[[10.0, 1.0]]]], device=device)
    assert atrous_conv2d(row, taps, padding="same").tolist() == [[[[12.0, 23.0, 30.0]]]]
    assert atrous_conv2d(row, taps, padding="valid").tolist() == [[[[12.0, 23.0]]]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("name", WIDE)
@pytest.mark.slow
def test_long_sums_against_oracle(device, name, memory_format, dtype):
    check_against_oracle(name, dtype, device, memory_format)


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("name", CONTIGUOUS)
def test_contiguous_against_oracle(device, name, dtype):
    check_against_oracle(name, dtype, device, torch.contiguous_format)


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("name", CASES)
def test_against_oracle(device, name, memory_format, dtype):
    check_against_oracle(name, dtype, device, memory_format)


def check_against_oracle(name, dtype, device, memory_format):
    x, w, b, (stride, padding, dilation, groups) = make(name, dtype, device, memory_format)
    tensors = [t.requires_grad_() for t in (x, w, b)]
    actual = atrous_conv2d(x, w, b, stride, padding, dilation, groups)
    torch_result = F.conv2d(x, w, b, stride, padding, dilation, groups)
    geometry = (stride, (*padding, *padding), dilation, groups)
    exact = reference.forward(*map(to_float64, tensors), *geometry)
    assert_as_accurate_as_torch(actual, torch_result, exact)
    assert actual.is_contiguous(memory_format=memory_format)

    grad = torch.randn_like(actual)
    actual_grads = torch.autograd.grad(actual, tensors, grad)
    torch_grads = torch.autograd.grad(torch_result, tensors, grad)
    g = to_float64(grad)
    exact_grads = (
        reference.backward_input(g, to_float64(w), x.shape[2:], *geometry),
        reference.backward_weight(g, to_float64(x), w.shape[2:], *geometry),
        g.sum((0, 2, 3)),
    )
    for actual_grad, torch_grad, exact in zip(actual_grads, torch_grads, exact_grads, strict=True):
        assert_as_accurate_as_torch(actual_grad, torch_grad, exact)


@st.composite
def problems(draw):
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    channels, outputs = groups * draw(st.integers(1, 12)), groups * draw(st.integers(1, 36))
    if draw(st.booleans()):
        groups = outputs = channels
    axes = []
    for _ in range(2):
        taps, stride = draw(st.integers(1, 4)), draw(st.integers(1, 3))
        dilation, padding = draw(st.integers(1, 6)), draw(st.integers(0, 9))
        least = max(1, dilation * (taps - 1) + 1 - 2 * padding)
        axes.append((least + draw(st.integers(0, 12)), taps, stride, padding, dilation))
    size, taps, stride, padding, dilation = zip(*axes, strict=True)
    x = torch.randn(draw(st.integers(0, 3)), channels, *size, dtype=torch.float64)
    w = torch.randn(outputs, channels // groups, *taps, dtype=torch.float64)
    formats = [draw(st.sampled_from(FORMATS)) for _ in range(2)]
    x, w = (t.to(memory_format=f) for t, f in zip((x, w), formats, strict=True))
    return x.requires_grad_(), w.requires_grad_(), (stride, padding, dilation, groups)


@given(problem=problems())
@settings(deadline=None, max_examples=60)
def test_any_geometry_as_conv2d(problem):
    x, w, (stride, padding, dilation, groups) = problem
    actual = atrous_conv2d(x, w, None, stride, padding, dilation, groups)
    expected = F.conv2d(x, w, None, stride, padding, dilation, groups)
    torch.testing.assert_close(actual, expected)
    grad = torch.randn_like(actual)
    actual_grads = torch.autograd.grad(actual, (x, w), grad)
    torch.testing.assert_close(actual_grads, torch.autograd.grad(expected, (x, w), grad))


OPTIONS = [(1, (40, 2), (40, 2)), ((2, 3), (6, 3), (5, 3)), (3, 9, 1), (2, (80, 2), (40, 1))]


@pytest.mark.parametrize("options", OPTIONS)
def test_large_depthwise_planes_as_conv2d(device, options):
    # Larger than the planes that the CPU packs at once.
    x = torch.randn(1, 2, 303, 521, dtype=torch.float64, device=device)
    w = torch.randn(2, 1, 3, 4, dtype=torch.float64, device=device)
    leaves = [t.requires_grad_() for t in (x, w)]
    actual, expected = (f(x, w, None, *options, 2) for f in (atrous_conv2d, F.conv2d))
    torch.testing.assert_close(actual, expected)
    grad = torch.randn_like(actual)
    actual, expected = (torch.autograd.grad(y, leaves, grad) for y in (actual, expected))
    torch.testing.assert_close(actual, expected)


GRADCHECK = ["strided, unequal axes", "narrow groups", "pixels without a live tap"]


@pytest.mark.parametrize("name", GRADCHECK)
def test_gradcheck(device, name):
    x, w, b, options = make(name, torch.float64, device)
    # A corner of every tensor is enough, because each element is checked separately.
    x, w, b = x[:, : 2 * options[3]], w[: 2 * options[3], :2], b[: 2 * options[3]]
    tensors = [t.clone().requires_grad_() for t in (x, w, b)]

    def convolve(*tensors):
        return atrous_conv2d(*tensors, *options)

    assert torch.autograd.gradcheck(convolve, tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(convolve, tensors, fast_mode=True)


@pytest.mark.parametrize("name", ["groups", "depthwise"])
def test_third_derivative(device, name):
    x, w, _, options = make(name, torch.float64, device)
    results = []
    for convolve in (atrous_conv2d, F.conv2d):
        leaves = [t.clone().requires_grad_() for t in (x, w)]
        value = convolve(*leaves, None, *options)
        for _ in range(3):
            grads = torch.autograd.grad((value**3).sum() / 100, leaves, create_graph=True)
            value = sum(g.sum() for g in grads)
        results.append(value)
    torch.testing.assert_close(*results)
