"""atrousx.set_precision: Winograd may be chosen, except at "highest"."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import atrousx
from atrousx.backend.choice import winograd_points
from atrousx.ops import atrous_conv2d
from tests.ops.atrous_conv2d.cases import fused_op, pack_op, points_of
from tests.ops.common import multiplies_bfloat16_pairs


@pytest.fixture(autouse=True)
def _restored():
    before = atrousx.get_backend()
    atrousx.set_backend("native")
    yield
    atrousx.set_backend(before)
    atrousx.set_precision("default")


def operands(dtype=torch.float32):
    x = torch.randn(1, 64, 40, 41).to(dtype)
    w = torch.randn(64, 64, 3, 3).to(dtype)
    return x.requires_grad_(), w.requires_grad_()


def passes(x, w):
    y = atrous_conv2d(x, w, padding=2, dilation=2)
    return y.detach(), *torch.autograd.grad(y.square().sum(), (x, w))


def test_the_switch():
    assert atrousx.get_precision() == "default"
    atrousx.set_precision("highest")
    assert atrousx.get_precision() == "highest"
    for value in ("high", None, True):
        with pytest.raises(ValueError, match="precision must be 'default' or 'highest', got"):
            atrousx.set_precision(value)
    assert atrousx.get_precision() == "highest"


def test_every_pass_multiplies_live_taps_at_highest():
    # Winograd's transforms round these operands, so its results differ from those of live taps.
    x, w = (t.detach().mul(2).round().requires_grad_() for t in operands())
    with torch.no_grad():
        x.mul_(1 + 2**-12), w.mul_(1 + 2**-12)
    default = passes(x, w)
    atrousx.set_precision("highest")
    highest = passes(x, w)
    atrousx.set_precision("default")
    again = passes(x, w)
    for one, other, third in zip(default, highest, again, strict=True):
        assert not torch.equal(one, other)
        assert torch.equal(one, third)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_baked_into_nothing(dtype):
    x, w = (t.detach() for t in operands(dtype))
    layer = nn.Conv2d(64, 64, 3, padding=2, dilation=2, bias=False).to(dtype).eval()
    layer.weight.data = w
    layer = atrousx.optimize(layer)
    compiled = torch.compile(layer, backend="eager")
    geometry = ((1, 1), (2, 2, 2, 2), (2, 2))
    packed = pack_op(w, 1, points_of(x.shape, w.shape, *geometry, 1, True, dtype))
    runs = [
        lambda: layer(x),
        lambda: compiled(x),
        lambda: fused_op(x, w, None, None, False, *geometry, 1, False, packed),
    ]
    with torch.no_grad():
        for _ in range(2):
            default = [run() for run in runs]
            atrousx.set_precision("highest")
            assert winograd_points("native", x, w, *geometry, frozen=True) == ()
            assert points_of(x.shape, w.shape, *geometry, 1, True, dtype) == []
            highest = [run() for run in runs]
            atrousx.set_precision("default")
            assert winograd_points("native", x, w, *geometry, frozen=True) != ()
            # Compiled code does not transform filters beforehand. With pairs of bfloat16, Winograd
            # pays only if filters are transformed beforehand, so compiled code gives the same
            # result.
            same = {1} if dtype == torch.bfloat16 and multiplies_bfloat16_pairs() else set()
            for run, (one, other) in enumerate(zip(default, highest, strict=True)):
                assert torch.equal(one, other) is (run in same)
            for other in highest[1:]:
                assert torch.equal(other, highest[0])
