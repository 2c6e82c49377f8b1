"""Gradients are registered in one way, shared by the quick call and the dispatcher's call."""

from __future__ import annotations

import pytest
import torch

from atrousx._derivatives import _flat, _grouped
from atrousx.ops import atrous_conv2d, multi_rate_conv2d, upsample_bilinear2d

OPS = torch.ops.atrousx


def randn(*size):
    return torch.randn(size, dtype=torch.float64, requires_grad=True)


def test_lists_are_put_apart_and_together():
    values, lengths = [1, [2, 3], (4, 5), None], (None, 2, None, None)
    flat = _flat(values, lengths)
    assert flat == [1, 2, 3, (4, 5), None]
    assert _grouped([*flat, "rest"], lengths) == (1, [2, 3], (4, 5), None)


CASES = {
    "upsampling": (
        lambda x: upsample_bilinear2d(x, (5, 7)),
        lambda x: OPS.upsample_bilinear2d(x, (5, 7), False),
        [randn(1, 2, 3, 4)],
    ),
    "convolution": (
        lambda x, w, b: atrous_conv2d(x, w, b, padding=2, dilation=2, backend="native"),
        lambda x, w, b: OPS.atrous_conv2d(x, w, b, (1, 1), (2,) * 4, (2, 2), 1),
        [randn(1, 2, 4, 3), randn(2, 2, 3, 3), randn(2)],
    ),
    "pyramid": (
        lambda x, v, w: multi_rate_conv2d(x, [v, w], None, (1, 2)),
        lambda x, v, w: OPS.multi_rate_conv2d(x, [v, w], None, (1, 2), False, False),
        [randn(1, 2, 4, 3), randn(2, 2, 3, 3), randn(3, 2, 1, 1)],
    ),
}
PLACES = [(name, place) for name, (_, _, inputs) in CASES.items() for place in range(len(inputs))]


@pytest.mark.parametrize("name", CASES)
def test_both_ways_have_the_same_gradients_again_and_again(name):
    *ways, inputs = CASES[name]
    results = []
    for call in ways:
        y = call(*inputs)
        seed = torch.ones_like(y)
        first = torch.autograd.grad(y, inputs, seed, retain_graph=True)
        assert all(map(torch.equal, first, torch.autograd.grad(y, inputs, seed)))
        results.append((y, *first))
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize(("name", "place"), PLACES)
def test_one_operand_alone_may_ask_for_a_gradient(name, place):
    *ways, inputs = CASES[name]
    given = [t.detach() for t in inputs]
    given[place].requires_grad_()
    for call in ways:
        found = torch.autograd.grad(call(*given).sum(), given[place])[0]
        expected = torch.autograd.grad(call(*inputs).sum(), inputs[place])[0]
        torch.testing.assert_close(found, expected)
        with torch.no_grad():
            assert not call(*given).requires_grad


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
)
def test_traces_hold_the_operator(name):
    quick, _, inputs = CASES[name]
    given = tuple(t.detach() for t in inputs)
    traced = torch.jit.trace(quick, given)
    assert "atrousx::" in str(traced.graph)
    assert torch.equal(traced(*given), quick(*given))
