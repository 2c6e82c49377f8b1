"""The backend "measure": both results are computed, compared and timed, and the faster is kept."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import atrousx
from atrousx.backend import machine, table, trial
from atrousx.backend import measure as measuring
from atrousx.backend.geometry import (
    FORWARD,
    FUSED,
    GRAD_INPUT,
    GRAD_WEIGHT,
    PASSES,
    device_name,
)
from atrousx.backend.table import FEW
from atrousx.inference.fused import FusedConv2d
from atrousx.ops import atrous_conv2d
from tests.backend.common import choices, convolve, operands, plant, step

pytestmark = pytest.mark.usefixtures("measure")


def test_each_pass_is_chosen_apart(clock, used):
    """In turn, atrousx's kernels are chosen for one pass, and PyTorch for the others."""
    for faster_native in (FORWARD, GRAD_INPUT, GRAD_WEIGHT):
        measuring.forget()
        x, w, b = operands()
        clock.update(native=2.0)
        step(x, w, b)
        for geometry, choice in list(measuring.table):
            assert not choice.native
            measuring.keep(geometry, choice._replace(native=geometry.pass_ == faster_native))
        used.clear()
        results = step(x, w, b)
        assert used == [faster_native]
        expected = F.conv2d(x, w, b, padding=2, dilation=2, groups=2)
        gradients = torch.autograd.grad(expected.square().sum(), (x, w, b))
        for result, right in zip(results, (expected, *gradients), strict=True):
            torch.testing.assert_close(result, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("native", "expected"), [(1.0, True), (1.04, True), (1.06, False), (0.5, True), (9.0, False)]
)
def test_pytorch_must_win_by_five_percent(clock, native, expected):
    clock.update(native=native)
    step(*operands())
    assert {pass_: choice.native for pass_, choice in choices().items()} == dict.fromkeys(
        PASSES, expected
    )


def test_a_layer_that_is_pytorchs_throughout_has_its_autograd(clock, used):
    clock.update(native=9.0)
    x, w, b = operands()
    nodes = [convolve(x, w, b).grad_fn.name()]
    for input in (x.detach(), x):
        for _ in range(2):
            convolve(input, w, b).sum().backward()
        nodes.append(convolve(x, w, b).grad_fn.name())
        nodes.append(convolve(x.detach(), w, b).grad_fn.name())
    own, torchs = "_MeasuredBackward", "ConvolutionBackward0"
    # At first only the weight's gradient was measured, so the choice for the input's is unknown.
    assert nodes == [own, own, torchs, torchs, torchs]
    used.clear()
    expected = F.conv2d(x, w, b, padding=2, dilation=2, groups=2)
    torch.testing.assert_close(convolve(x, w, b), expected)
    assert used == []


def test_a_geometry_is_tried_once(clock, used):
    x, w, b = operands()
    step(x, w, b)
    used.clear()
    for _ in range(3):
        step(x.detach().clone().requires_grad_(), w, b)
    assert used == list(PASSES) * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_right_kernels_agree_in_every_dtype(clock, dtype, memory_format):
    for channels, groups in ((32, 1), (32, 4), (8, 8)):
        x = torch.randn(2, channels, 17, 17, dtype=dtype).to(memory_format=memory_format)
        w = torch.randn(channels, channels // groups, 3, 3, dtype=dtype, requires_grad=True)
        y = atrous_conv2d(x.requires_grad_(), w, None, 1, 3, 3, groups)
        y.backward(torch.ones_like(y))
    assert len(list(measuring.table)) == 9
    assert all(choice.agrees for _, choice in measuring.table)


def test_the_highest_precision_is_measured_by_itself(clock, used):
    x, w, b = operands()
    convolve(x.detach(), w.detach(), b.detach(), backend="measure")
    clock["native"] = 2.0
    atrousx.set_precision("highest")
    try:
        convolve(x.detach(), w.detach(), b.detach(), backend="measure")
    finally:
        atrousx.set_precision("default")
    kept = {g.device: choice.native for g, choice in measuring.table if g.pass_ == FORWARD}
    here = device_name(x.device)
    assert kept == {here: True, f"{here} at the highest precision": False}


def test_other_threads_are_measured_anew(clock, used):
    x, w, b = (t.detach() for t in operands())
    threads = torch.get_num_threads()
    convolve(x, w, b)
    clock["native"] = 9.0
    try:
        torch.set_num_threads(threads + 1)
        convolve(x, w, b)
        used.clear()
        convolve(x, w, b)
        assert used == []
    finally:
        torch.set_num_threads(threads)
    convolve(x, w, b)
    assert used == [FORWARD]
    assert len({geometry.device for geometry, _ in measuring.table}) == 2


def test_sizes_of_a_view_are_those_of_one_layer(clock):
    w = torch.randn(6, 2, 3, 3)
    for size in (8, 16, 32, 64, 9):
        convolve(torch.randn(1, 4, size, 2 * size)[..., ::2], w)
    sources = [choice.source for _, choice in measuring.table]
    assert sources == ["measured"] * FEW + ["nearest"]


def test_the_nearest_measured_size_decides_after_a_few(clock, used):
    clock.update(native=2.0)
    sizes = [8, 16, 32, 64]
    assert len(sizes) == FEW
    w = torch.randn(6, 2, 3, 3)
    for size in sizes:
        clock.update(native=0.5 if size >= 32 else 2.0)
        convolve(torch.randn(1, 4, size, size), w)
    used.clear()
    for size, expected in ((9, []), (20, []), (24, [FORWARD]), (70, [FORWARD]), (5, [])):
        convolve(torch.randn(1, 4, size, size), w)
        assert used == expected, size
        used.clear()
    assert [choice.source for _, choice in measuring.table] == ["measured"] * FEW + ["nearest"] * 5
    # A batch counts as more pixels of the same layer. Another layer is measured separately.
    convolve(torch.randn(16, 4, 8, 8), w)
    assert used == [FORWARD]
    convolve(torch.randn(1, 4, 9, 9), torch.randn(8, 2, 3, 3))
    assert [choice.source for _, choice in measuring.table][-1] == "measured"


@pytest.mark.parametrize("native", [PASSES, (), (FORWARD,), (GRAD_INPUT,), (GRAD_WEIGHT,)])
def test_gradients_are_exact_to_the_second_order_whoever_computes(clock, native):
    wide = {"dtype": torch.float64, "requires_grad": True}
    x, w = torch.randn(1, 4, 3, 4, **wide), torch.randn(2, 2, 2, 2, **wide)
    b = torch.randn(2, **wide)

    def function(x, w, b):
        return atrous_conv2d(x, w, b, stride=(1, 2), padding=(1, 2), dilation=(2, 1), groups=2)

    def same(x, w, b):  # the odd pixel is below and to the right
        return atrous_conv2d(x, w, b, padding="same", dilation=(1, 3), groups=2)

    for f in (function, same):
        f(x, w, b).sum().backward()
        for geometry, choice in list(measuring.table):
            measuring.keep(geometry, choice._replace(native=geometry.pass_ in native))
        assert torch.autograd.gradcheck(f, (x, w, b), fast_mode=True)
        assert torch.autograd.gradgradcheck(f, (x, w, b), fast_mode=True)


def test_an_image_without_a_batch(clock):
    x, w, b = operands()
    torch.testing.assert_close(convolve(x[0], w, b), convolve(x, w, b)[0])


def test_auto_measures_where_there_are_no_limits(monkeypatch, clock):
    atrousx.set_backend("auto")
    x, w, b = operands()
    step(x, w, b)
    assert not choices()
    monkeypatch.setattr("atrousx.backend.choice._HAS_LIMITS", False)
    step(x, w, b)
    assert choices().keys() == set(PASSES)


@pytest.mark.parametrize("residual", [False, True])
def test_an_optimized_layer_is_measured_as_a_whole(monkeypatch, clock, residual):
    conv = torch.nn.Conv2d(8, 16, 3, padding=2, dilation=2)
    layer = FusedConv2d.make(conv, relu=True)
    x, added = torch.randn(1, 8, 9, 9), torch.randn(1, 16, 9, 9) if residual else None
    expected = (conv(x) + (added if residual else 0)).relu()
    with torch.no_grad():
        torch.testing.assert_close(layer(x, added), expected, rtol=1e-4, atol=1e-4)
        assert choices().keys() == {FUSED}
        measuring.forget()
        plant(monkeypatch, FUSED)
        with pytest.warns(RuntimeWarning, match="fused forward with .*relu of a 3x3"):
            result = layer(x, added)
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
        assert choices()[FUSED].agrees is False


def test_both_are_timed_in_turn_and_the_least_counts(monkeypatch):
    order, times = [], iter([9.0, 1.0, 2.0, 3.0, 4.0, 0.5])
    monkeypatch.setattr(
        trial, "seconds_of", lambda call, like: (order.append(call), next(times))[1]
    )
    monkeypatch.setattr(trial, "_CLEAR", 100.0)
    assert trial.faster("a", "b", torch.empty(0)) == (2.0, 0.5)
    assert order == ["a", "b"] * 3


def test_a_long_call_that_is_clearly_slower_is_timed_once(monkeypatch):
    times = iter([1.0, 3.0])
    monkeypatch.setattr(trial, "seconds_of", lambda call, like: next(times))
    assert trial.faster("a", "b", torch.empty(0)) == (1.0, 3.0)


def test_a_layer_keeps_so_many_decisions_and_takes_the_rest_alike(monkeypatch, clock, used):
    monkeypatch.setattr(table, "MOST_NEAREST", 2)
    w = torch.randn(6, 2, 3, 3)
    for size in (8, 16, 32, 64, 9, 10, 11, 12):
        convolve(torch.randn(1, 4, size, size), w)
    assert len(list(measuring.table)) == FEW + 2
    assert used[-4:] == [FORWARD] * 4


@pytest.mark.parametrize("capturing", [None, 0, 1])
def test_a_capture_is_seen_on_the_tensors_device_and_the_current_one(monkeypatch, capturing):
    current = [0]

    class On:
        def __init__(self, device):
            self.index = torch.device(device).index

        def __enter__(self):
            current.append(self.index)

        def __exit__(self, *_):
            current.pop()

    monkeypatch.setattr(torch.cuda, "device", On)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: current[-1] == capturing)
    assert machine.is_capturing(torch.device("cuda:1")) == (capturing is not None)
    assert machine.is_capturing(torch.device("cuda:0")) == (capturing == 0)
    assert not machine.is_capturing(torch.device("cpu"))
