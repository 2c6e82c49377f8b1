"""Which implementation computes a convolution: set_backend, the keyword, the rule of "auto"."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

import atrousx
from atrousx.backend import rule
from atrousx.backend.choice import torch_computes
from atrousx.backend.geometry import is_channels_last
from atrousx.ops import atrous_conv2d


@pytest.fixture(autouse=True)
def _restored():
    before = atrousx.get_backend()
    yield
    atrousx.set_backend(before)


@pytest.fixture
def limits(monkeypatch):
    """Uses the limits of AVX-512 on any CPU."""
    monkeypatch.setattr(rule, "current_limits", lambda: rule.limits_of("avx512"))
    rule.cpu_rule.cache_clear()
    yield
    rule.cpu_rule.cache_clear()


def computes(backend=None, size=33, dilation=1, trains=False, **options):
    """Returns the implementation: only PyTorch's multiplies infinite weights by padding, giving
    NaN."""
    x = torch.ones(1, 4, size, size, requires_grad=trains)
    w = torch.full((64, 4, 3, 3), torch.inf)
    y = atrous_conv2d(x, w, padding=dilation, dilation=dilation, backend=backend, **options)
    return "torch" if y.isnan().any() else "native"


def test_the_keyword_and_the_default():
    assert computes("native") == "native"
    assert computes("torch") == "torch"
    atrousx.set_backend("torch")
    assert computes() == "torch"
    assert computes("native") == "native"
    atrousx.set_backend("native")
    assert computes() == "native"


def test_auto_goes_by_the_share_of_live_taps(limits):
    assert computes("auto", dilation=1) == "torch"
    assert computes("auto", dilation=18) == "native"
    atrousx.set_backend("auto")
    assert computes(dilation=1) == "torch"
    assert computes(dilation=18) == "native"


@pytest.mark.parametrize(
    ("groups", "memory_format", "expected"),
    [
        (1, torch.contiguous_format, "native"),
        (4, torch.contiguous_format, "torch"),
        (1, torch.channels_last, "torch"),
        (32, torch.contiguous_format, "native"),  # depthwise
        (16, torch.contiguous_format, "torch"),  # two outputs per channel
    ],
)
def test_auto_knows_groups_and_few_channels(limits, groups, memory_format, expected):
    channels = groups if groups == 16 else 32
    x = torch.ones(1, channels, 33, 33).to(memory_format=memory_format)
    w = torch.ones(32, channels // groups, 5, 5)
    by_torch = torch_computes("auto", x, w, None, (1, 1), (12, 12, 12, 12), (6, 6))
    assert ("torch" if by_torch else "native") == expected


def test_memory_formats_are_told_apart_as_pytorch_does():
    for size in itertools.product((1, 2, 3), (1, 2), (1, 2), (1, 3)):
        for order in itertools.permutations(range(4)):
            inverse = [order.index(axis) for axis in range(4)]
            dense = torch.empty([size[axis] for axis in order]).permute(inverse)
            wide = torch.empty([2 * size[axis] for axis in order]).permute(inverse)
            corner = wide[: size[0], : size[1], : size[2], : size[3]]
            for tensor in (dense, corner, dense[:1].expand(size), dense[:, :1].expand(size)):
                expected = torch._prims_common.suggest_memory_format(tensor)
                assert is_channels_last(tensor) is (expected is torch.channels_last), (
                    tensor.stride()
                )
    assert not is_channels_last(torch.empty(2, 3, 4))


def test_auto_without_channels():
    x, w = torch.empty(1, 0, 5, 5), torch.empty(9, 0, 3, 3)
    assert atrous_conv2d(x, w, torch.ones(9), backend="auto").eq(1).all()


@pytest.mark.parametrize(
    ("taps", "expected"),
    [
        ((3, 3), "native"),
        ((1, 3), "native"),
        ((3, 1), "torch"),
        ((5, 3), "torch"),
        ((3, 5), "torch"),
    ],
)
def test_auto_of_undilated_depthwise_layers_by_taps(limits, taps, expected):
    x = torch.empty(1, 64, 33, 33).to(memory_format=torch.channels_last)
    sides = (taps[0] // 2, taps[1] // 2) * 2
    geometry = ((1, 1), sides, (1, 1))
    by_torch = torch_computes("auto", x, torch.empty(64, 1, *taps), None, *geometry)
    assert by_torch is (expected == "torch")


@pytest.mark.parametrize(
    ("options", "trains", "expected"),
    [
        ((1, 1, 1), False, "torch"),
        ((1, 1, 1), True, "native"),
        ((2, 1, 1), False, "native"),
        ((2, 1, 1), True, "native"),
        ((1, 2, 2), True, "native"),
        ((1, 18, 18), False, "native"),
    ],
)
def test_auto_of_a_depthwise_layer(limits, options, trains, expected):
    stride, padding, dilation = options
    geometry = ((stride, stride), (padding,) * 4, (dilation, dilation))
    w = torch.empty(6, 1, 3, 3, requires_grad=trains)
    for memory_format in (torch.channels_last, torch.contiguous_format):
        x = torch.empty(1, 6, 33, 33).to(memory_format=memory_format)
        by_torch = expected == "torch" and memory_format == torch.channels_last
        assert torch_computes("auto", x, w, None, *geometry) is by_torch


@pytest.mark.parametrize("channels_last", [False, True])
def test_auto_takes_minimal_filtering_where_it_pays(limits, channels_last):
    chosen = torch.channels_last if channels_last else torch.contiguous_format

    def computes(size, dtype=torch.float32, packed=False, trains=False):
        x = torch.empty(1, 64, size, size, dtype=dtype).to(memory_format=chosen)
        w = torch.empty(64, 64, 3, 3, dtype=dtype, requires_grad=trains)
        geometry = ((1, 1), (1, 1, 1, 1), (1, 1))
        by_torch = torch_computes("auto", x, w, None, *geometry, packed=packed)
        return "torch" if by_torch else "native"

    assert computes(33) == "native"
    assert computes(33, torch.bfloat16, packed=True) == "native"
    # With few pixels it does not pay to transform the filters at every call.
    assert computes(33, torch.bfloat16) == "torch"
    assert computes(9) == "torch"
    assert computes(9, packed=True) == "native"
    assert computes(9, trains=True) == "native"  # grad-weight gains anyway
    with torch.autocast("cpu", torch.bfloat16):
        assert computes(33) == "torch"


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_auto_under_jit_trace():
    atrousx.set_backend("auto")
    model = torch.nn.Sequential(atrousx.AtrousConv2d(64, 64, 3, padding=18, dilation=18))
    x, larger = torch.randn(1, 64, 33, 33), torch.randn(1, 64, 40, 40)
    for traced in (model, atrousx.optimize(model.eval())):
        result = torch.jit.trace(traced, x)(larger)
        torch.testing.assert_close(result, model(larger), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rate", [2, 18])
def test_auto_under_functional_transforms(rate):
    atrousx.set_backend("auto")
    x, w = torch.randn(2, 64, 33, 33), torch.randn(64, 64, 3, 3)

    def total(x, w):
        return atrous_conv2d(x, w, padding=rate, dilation=rate).square().sum()

    expected = torch.autograd.grad(total(x, w.requires_grad_()), w)[0]
    result = torch.func.grad(total, argnums=1)(x, w.detach())
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-1)
    each = torch.func.vmap(total, (0, None))(x, w.detach())
    torch.testing.assert_close(each.sum(), total(x, w).detach(), rtol=1e-4, atol=1e-1)


@pytest.mark.parametrize("padding", [1, (2, 0), "same", "valid"])
def test_both_give_the_same(padding):
    x = torch.randn(2, 6, 9, 8, dtype=torch.float64, requires_grad=True)
    w = torch.randn(4, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    b = torch.randn(4, dtype=torch.float64)
    for input in (x, x[0]):
        results = []
        for backend in ("native", "torch", "auto"):
            y = atrous_conv2d(input, w, b, 1, padding, 2, 2, backend=backend)
            results.append((y, *torch.autograd.grad(y.square().sum(), (x, w))))
        torch.testing.assert_close(results[1], results[0])
        torch.testing.assert_close(results[2], results[0])


def test_traced_code_stays_native_under_auto():
    atrousx.set_backend("auto")
    w = torch.full((8, 4, 3, 3), torch.inf)

    def convolve(x):
        return atrous_conv2d(x, w, padding=1)

    compiled = torch.compile(convolve, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in (9, 12):
        assert not compiled(torch.ones(1, 4, size, size)).isnan().any()
    atrousx.set_backend("torch")
    assert compiled(torch.ones(1, 4, 9, 9)).isnan().any()


def test_autocast_is_asked_for_its_dtype():
    x, w = torch.randn(1, 4, 9, 9), torch.randn(8, 4, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        for backend in ("auto", "torch"):
            result = atrous_conv2d(x, w, padding=1, backend=backend)
            torch.testing.assert_close(result, F.conv2d(x, w, padding=1), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("value", ["cudnn", "", None, 1])
def test_rejects(value):
    with pytest.raises(ValueError, match="backend must be 'auto', 'native', 'torch' or 'm"):
        atrousx.set_backend(value)
    if value is not None:
        with pytest.raises(ValueError, match="backend must be 'auto', 'native', 'torch' or 'm"):
            computes(value)


@pytest.mark.parametrize(
    ("value", "expected"), [("torch", "torch"), ("gpu", "ATROUSX_BACKEND must")]
)
def test_environment(value, expected):
    result = subprocess.run(
        [sys.executable, "-c", "import atrousx; print(atrousx.get_backend())"],
        env={**os.environ, "ATROUSX_BACKEND": value},
        capture_output=True,
        text=True,
    )
    assert expected in result.stdout + result.stderr
