"""On a GPU "auto" measures with events, on the current stream, and never in a captured graph."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F

import atrousx
from atrousx.backend import measure as measuring
from atrousx.backend.geometry import PASSES
from atrousx.ops import atrous_conv2d

pytestmark = pytest.mark.cuda


def operands(dtype=torch.float32):
    x = torch.randn(2, 64, 33, 33, dtype=dtype, device="cuda", requires_grad=True)
    w = torch.randn(32, 64, 3, 3, dtype=dtype, device="cuda", requires_grad=True)
    return x, w


def convolve(x, w):
    return atrous_conv2d(x, w, None, 1, 6, 6, backend="auto")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_auto_measures_and_agrees(dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x, w = operands(dtype)
        y = convolve(x, w)
        y.backward(torch.ones_like(y))
    found = dict(measuring.table)
    assert {geometry.pass_ for geometry in found} == set(PASSES)
    for geometry, choice in found.items():
        assert geometry.device == torch.cuda.get_device_name()
        assert choice.agrees
        assert 0 < choice.native_seconds < 1
        assert 0 < choice.torch_seconds < 1
    tolerance = 1e-3 if dtype == torch.float32 else 5e-2
    expected = F.conv2d(x.double(), w.double(), padding=6, dilation=6).to(dtype)
    torch.testing.assert_close(y, expected, rtol=tolerance, atol=tolerance * 24)


def test_another_stream_measures_there():
    x, w = (t.detach() for t in operands())
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        y = convolve(x, w)
    torch.cuda.current_stream().wait_stream(side)
    torch.testing.assert_close(y, F.conv2d(x, w, padding=6, dilation=6), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("before", [False, True])
def test_a_capture_measures_nothing(before):
    x, w = (t.detach() for t in operands())
    expected = F.conv2d(x, w, padding=6, dilation=6)
    if before:
        convolve(x, w)
    known = len(list(measuring.table))
    atrous_conv2d(x, w, None, 1, 6, 6, backend="native")  # loads the kernels
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = convolve(x, w)
    assert len(list(measuring.table)) == known
    graph.replay()
    torch.testing.assert_close(y, expected, rtol=1e-3, atol=1e-2)


def test_a_trial_gives_its_memory_back():
    x, w = (t.detach() for t in operands())
    y = convolve(x, w)
    del y
    measuring.forget()
    held = torch.cuda.memory_allocated()
    y = convolve(x, w)
    del y
    assert torch.cuda.memory_allocated() == held


def test_explain_names_the_tensor_cores():
    x, w = operands(torch.float16)
    found = atrousx.explain(w.shape, x, padding=6, dilation=6)
    assert found.passes[0].algorithm == "tensor cores"
    assert found.passes[0].computed_by == "undecided"
