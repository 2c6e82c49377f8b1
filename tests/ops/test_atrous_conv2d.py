"""ops.atrous_conv2d: literal cases, reference, gradients, any strides, determinism."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import atrousx
from atrousx.ops import atrous_conv2d
from tests.ops.atrous_conv2d_cases import (
    CASES,
    CONTIGUOUS,
    KINDS,
    WIDE,
    backward_input_op,
    backward_weight_op,
    forward_op,
    make,
)
from tests.ops.common import (
    FLOATING,
    FORMATS,
    assert_as_accurate_as_torch,
    assert_same_bits_with_any_threads,
    strided_views,
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


def test_padding_is_never_multiplied(device):
    # Infinity times padding would be NaN in all three passes.
    x = torch.ones(1, 1, 2, 2, device=device, requires_grad=True)
    w = torch.full((1, 1, 3, 3), torch.inf, device=device)
    w[0, 0, 1, 1] = 3
    w.requires_grad_()
    y = atrous_conv2d(x, w, padding=2, dilation=2)
    assert (y == 3).all()
    y.backward(torch.full_like(y, torch.inf))
    assert (x.grad == torch.inf).all()
    assert w.grad.isfinite().sum() == 8


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_dead_taps_are_never_multiplied(device, kind, memory_format):
    channels, outputs, groups, dtype = KINDS[kind]
    x = torch.ones(1, channels, 2, 2, device=device, dtype=dtype)
    w = torch.full((outputs, channels // groups, 3, 3), torch.inf, device=device, dtype=dtype)
    w[..., 1, 1] = 3
    x = x.to(memory_format=memory_format).requires_grad_()
    y = atrous_conv2d(x, w, padding=2, dilation=2, groups=groups)
    assert (y == 3 * channels // groups).all()
    (grad,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert (grad == 3 * outputs // groups).all()


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_padding_that_differs_from_side_to_side(device, kind, memory_format):
    channels, outputs, groups, dtype = KINDS[kind]
    geometry = ((1, 1), (0, 1, 2, 2), (2, 1), groups)

    def integers(*size):  # small enough that every sum is exact
        return torch.randint(-3, 4, size).to(device, dtype)

    x = integers(1, channels, 6, 5).to(memory_format=memory_format)
    w = integers(outputs, channels // groups, 2, 4)
    y = forward_op(x, w, None, *geometry)
    np.testing.assert_array_equal(
        to_float64(y), reference.forward(to_float64(x), to_float64(w), None, *geometry)
    )
    grad = integers(*y.shape).to(memory_format=memory_format)
    g = to_float64(grad)
    np.testing.assert_array_equal(
        to_float64(backward_input_op(grad, w, x.shape, *geometry)),
        reference.backward_input(g, to_float64(w), x.shape[2:], *geometry),
    )
    np.testing.assert_array_equal(
        to_float64(backward_weight_op(grad, x, w.shape, *geometry)),
        reference.backward_weight(g, to_float64(x), w.shape[2:], *geometry),
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("size", "groups", "before"),
    [
        ((2, 70, 9, 9), 1, 0),  # planes of 81 pixels: rows start at every position in a vector
        ((1, 37, 5, 13), 1, 3),  # a map that starts within a vector
        ((2, 38, 3, 7), 2, 0),
        ((1, 16, 8, 8), 1, 0),  # whole vectors throughout
        ((1, 17, 1, 2), 1, 1),
    ],
)
def test_a_filter_of_one_copies_a_map_wherever_it_lies(device, size, groups, before, dtype):
    # On CUDA, tensor cores read maps of whole vectors in place. Other maps are packed.
    values = torch.randint(-50, 50, (before + math.prod(size),)).to(device, dtype)
    x = values[before:].view(size)
    w = torch.eye(size[1] // groups, device=device, dtype=dtype).repeat(groups, 1)[..., None, None]
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
        assert torch.equal(atrous_conv2d(x, w, groups=groups), x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_filter_of_one_copies_a_part_of_a_map(device, dtype):
    # Every other pixel of channels_last rows, and some of the channels.
    values = torch.randint(-50, 50, (2, 6, 9, 20)).to(device, dtype)
    x = values[:, :, ::2, 1:18].permute(0, 3, 1, 2)
    w = torch.eye(17, device=device, dtype=dtype)[..., None, None]
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
        assert torch.equal(atrous_conv2d(x, w), x)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_depthwise_padding_is_never_multiplied(device, memory_format):
    # An infinite number affects only the results that use it. No zero beside the map makes a NaN.
    x = torch.ones(1, 3, 6, 40, device=device).to(memory_format=memory_format)
    w = torch.ones(3, 1, 3, 3, device=device)
    w[0, 0, 0, 0] = torch.inf  # reads 4 pixels up and to the left
    y = atrous_conv2d(x, w, padding=4, dilation=4, groups=3)
    touched = torch.zeros_like(y, dtype=torch.bool)
    touched[:, 0, 4:, 4:] = True
    assert torch.equal(y == torch.inf, touched)
    assert y[~touched].isfinite().all()
    # In grad-weight an infinite gradient of an output, and an infinite input.
    g = torch.ones_like(y)
    g[0, 0, 0, 0] = x[0, 1, 0, 0] = torch.inf
    w = w[2:].repeat(3, 1, 1, 1).requires_grad_()
    y = atrous_conv2d(x, w, padding=4, dilation=4, groups=3)
    (grad,) = torch.autograd.grad(y, w, g)
    touched = torch.zeros_like(w, dtype=torch.bool)
    touched[0, :, 1:, 1:] = True
    touched[1, :, :2, :2] = True
    assert torch.equal(grad == torch.inf, touched)
    assert grad[~touched].isfinite().all()


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("stride", [2, 3])
def test_strided_depthwise_padding_is_never_multiplied(device, memory_format, stride):
    x = torch.ones(1, 2, 6, 40, device=device).to(memory_format=memory_format).requires_grad_()
    w = torch.ones(2, 1, 3, 3, device=device)
    w[0, 0, 0, 0] = torch.inf  # reads a pixel up and to the left
    y = atrous_conv2d(x, w, stride=stride, padding=1, groups=2)
    touched = torch.zeros_like(y, dtype=torch.bool)
    touched[:, 0, 1:, 1:] = True
    assert torch.equal(y == torch.inf, touched)
    (grad,) = torch.autograd.grad(y, x, torch.ones_like(y))
    touched = torch.zeros_like(x, dtype=torch.bool)
    touched[:, 0, stride - 1 :: stride, stride - 1 :: stride] = True
    read = (y.shape[2] - 1) * stride, (y.shape[3] - 1) * stride
    touched[:, :, read[0] :] = touched[:, :, :, read[1] :] = False
    assert torch.equal(grad == torch.inf, touched)
    assert grad[~touched].isfinite().all()


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
