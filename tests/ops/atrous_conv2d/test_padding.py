"""Padding is never multiplied."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from atrousx.ops import atrous_conv2d
from tests.ops.atrous_conv2d.cases import (
    KINDS,
    backward_input_op,
    backward_weight_op,
    forward_op,
)
from tests.ops.common import (
    FORMATS,
    to_float64,
)
from tests.reference import atrous_conv2d as reference


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
