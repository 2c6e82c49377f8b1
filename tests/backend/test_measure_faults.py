"""The backend "measure" never uses a kernel that is wrong or fails."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
import torch.nn.functional as F

from atrousx.backend import measure as measuring
from atrousx.backend import passes
from atrousx.backend.geometry import (
    FORWARD,
    GRAD_INPUT,
    PASSES,
    Operands,
    is_channels_last,
)
from tests.backend.common import choices, convolve, operands, plant, step

pytestmark = pytest.mark.usefixtures("measure")


@pytest.mark.parametrize("pass_", PASSES)
def test_a_wrong_kernel_is_never_used_and_warned_of_once(monkeypatch, clock, used, pass_):
    plant(monkeypatch, pass_)
    x, w, b = operands()
    with pytest.warns(RuntimeWarning, match=rf"differ by .*: {pass_} of a 3x3 .*, float32, cpu"):
        step(x, w, b)
    used.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results = step(x, w, b)
    assert used == [other for other in PASSES if other != pass_]
    assert choices()[pass_].agrees is False
    expected = F.conv2d(x, w, b, padding=2, dilation=2, groups=2)
    gradients = torch.autograd.grad(expected.square().sum(), (x, w, b))
    for result, right in zip(results, (expected, *gradients), strict=True):
        torch.testing.assert_close(result, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "fault",
    [
        lambda result: result.index_fill(-1, torch.tensor([0]), 0.0),  # a column is not written
        lambda result: torch.full_like(result, torch.nan),
        lambda result: result[..., :-1],
        lambda result: result * 1.001,
    ],
)
def test_faults_of_many_kinds_are_seen(monkeypatch, clock, fault):
    plant(monkeypatch, FORWARD, fault)
    x, w, b = operands()
    with pytest.warns(RuntimeWarning, match="differ by"):
        y = convolve(x, w, b)
    torch.testing.assert_close(y, F.conv2d(x, w, b, padding=2, dilation=2, groups=2))


def test_a_kernel_that_fails_is_not_used(monkeypatch, clock):
    def fail(result):
        raise RuntimeError("too many resources requested for launch")

    plant(monkeypatch, GRAD_INPUT, fail)
    with pytest.warns(RuntimeWarning, match="kernels failed .too many resources"):
        step(*operands())
    assert choices()[GRAD_INPUT].agrees is False


def test_zeros_and_infinities_do_not_hide_a_wrong_kernel(monkeypatch, clock):
    plant(monkeypatch, FORWARD, lambda result: result * 2)
    for value in (0.0, torch.inf, torch.nan):
        measuring.forget()
        x = torch.full((1, 4, 9, 9), value)
        with pytest.warns(RuntimeWarning, match="differ by"):
            convolve(x, torch.ones(6, 2, 3, 3))


def test_memory_that_runs_out_means_pytorch(monkeypatch, clock):
    def fail(result):
        raise torch.OutOfMemoryError("out of memory")

    plant(monkeypatch, FORWARD, fail)
    x, w, b = (t.detach() for t in operands())
    torch.testing.assert_close(
        convolve(x, w, b), F.conv2d(x, w, b, padding=2, dilation=2, groups=2)
    )
    assert choices()[FORWARD].source == "no memory"


# Views whose memory layout differs from a new map's.
VIEWS = {
    "columns": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "a crop": lambda x: F.pad(x, (1, 2, 3, 4))[..., 3:-4, 1:-2],
    "one number on": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
    "expanded": lambda x: x[:1].expand_as(x),
    "transposed": lambda x: x.mT.contiguous().mT,
}


def lies_otherwise(tensor):
    strided = not (tensor.is_contiguous() or is_channels_last(tensor))
    return strided or tensor.data_ptr() % 16 != 0


@pytest.mark.parametrize(
    ("view", "place"), [*itertools.product(VIEWS, (0, 1)), ("one number on", 2)]
)
def test_a_kernel_that_is_wrong_on_views_alone_is_found_out(monkeypatch, clock, used, view, place):
    right = passes._forward

    def wrong_on_views(*tensors_and_options):
        return right(*tensors_and_options) + any(map(lies_otherwise, tensors_and_options[:3]))

    monkeypatch.setattr(passes, "_forward", wrong_on_views)
    given = [t.detach() for t in operands()]
    convolve(*given)
    assert choices()[FORWARD].agrees
    given[place] = VIEWS[view](given[place])
    assert lies_otherwise(given[place])
    with pytest.warns(RuntimeWarning, match=rf"differ by .*, {Operands._fields[place]} .*\. PyTor"):
        result = convolve(*given)
    torch.testing.assert_close(result, F.conv2d(*given, padding=2, dilation=2, groups=2))
    assert [choice.agrees for _, choice in measuring.table] == [True, False]


def test_a_kernel_wrong_at_one_size_is_used_at_no_size_that_was_not_compared(monkeypatch, clock):
    w = torch.randn(6, 2, 3, 3)
    for size in (8, 16, 32):
        convolve(torch.randn(1, 4, size, size), w)
    with monkeypatch.context() as patched:
        plant(patched, FORWARD)
        with pytest.warns(RuntimeWarning):
            convolve(torch.randn(1, 4, 64, 64), w)
    x = torch.full((1, 4, 9, 9), 1.0)
    result = convolve(x, torch.full_like(w, torch.inf))
    assert result.isnan().any()  # PyTorch's convolution multiplies padding


def test_a_size_found_wrong_takes_back_what_the_nearest_decided(clock):
    w = torch.randn(6, 2, 3, 3)
    for size in (8, 16, 32, 64, 9):
        convolve(torch.randn(1, 4, size, size), w)
    (near,) = (g for g, c in measuring.table if c.source == "nearest")
    found, choice = next((g, c) for g, c in measuring.table if c.source == "measured")
    measuring.keep(found, choice._replace(native=False, agrees=False))
    assert not measuring.choice_of(near, torch.device("cpu")).native
    assert near not in dict(measuring.table)  # explain asks, but nothing is kept
