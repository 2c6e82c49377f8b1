"""3x3 convolutions with filters transformed for Winograd's F(2x2, 3x3), as optimize has them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from atrousx.ops._backend import winograd_pays
from tests.ops.common import (
    FORMATS,
    assert_as_accurate_as_torch,
    assert_same_bits_with_any_threads,
    to_float64,
)
from tests.reference import atrous_conv2d as reference

fused_op = torch.ops.atrousx._atrous_conv2d_fused.default
pack_op = torch.ops.atrousx._atrous_conv2d_pack_weight.default
multi_rate_op = torch.ops.atrousx._multi_rate_conv2d_relu.default

# N, C, K, (H, W), padding (top, left, bottom, right), dilation
CASES = {
    "plain, odd": (2, 20, 37, (7, 9), (1, 1, 1, 1), (1, 1)),
    "dilated, slabs and blocks cut off": (1, 131, 70, (11, 8), (2, 3, 2, 3), (2, 3)),
    "more rate than map": (1, 16, 8, (4, 5), (6, 7, 6, 7), (6, 7)),
    "one pixel": (3, 9, 24, (1, 1), (1, 1, 1, 1), (1, 1)),
    "unequal padding": (1, 8, 9, (6, 7), (0, 3, 2, 1), (1, 2)),
    "more channels than a product": (1, 700, 65, (5, 5), (1, 1, 1, 1), (1, 1)),
    "many tiles": (2, 33, 21, (40, 31), (4, 4, 4, 4), (4, 4)),
}


def make(name, memory_format=torch.channels_last):
    batch, channels, outputs, size, sides, dilation = CASES[name]
    x = torch.randn(batch, channels, *size).to(memory_format=memory_format)
    w = torch.randn(outputs, channels, 3, 3)
    return x, w, torch.randn(outputs), ((1, 1), sides, dilation, 1)


def convolve(x, w, b, geometry, residual=None, relu=False):
    packed = pack_op(w, 1, True)
    assert packed.numel() % 16 == 0
    assert packed.numel() != pack_op(w, 1).numel()
    return fused_op(x, w, b, residual, relu, *geometry, False, packed)


def test_by_hand():
    # Small integers are exact: ones everywhere count the live taps.
    x, w = torch.ones(1, 8, 4, 3), torch.ones(8, 8, 3, 3)
    result = convolve(x, w, None, ((1, 1), (1, 1, 1, 1), (1, 1), 1))
    assert (result[0, 5] / 8).tolist() == [[4, 6, 4], [6, 9, 6], [6, 9, 6], [4, 6, 4]]


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("name", CASES)
def test_winograd_against_oracle_on_cpu(name, memory_format):
    x, w, b, geometry = make(name, memory_format)
    _, (top, left, bottom, right), dilation, _ = geometry
    result = convolve(x, w, b, geometry)
    theirs = F.conv2d(F.pad(x, (left, right, top, bottom)), w, b, dilation=dilation)
    exact = reference.forward(*map(to_float64, (x, w, b)), *geometry)
    assert_as_accurate_as_torch(result, theirs, exact)
    assert result.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_residual_and_relu(memory_format):
    x, w, b, geometry = make("dilated, slabs and blocks cut off")
    plain = convolve(x, w, b, geometry)
    residual = torch.randn_like(plain).to(memory_format=memory_format)
    result = convolve(x, w, b, geometry, residual, relu=True)
    assert torch.equal(result, (plain + residual).relu())
    assert torch.equal(
        convolve(x, w, None, geometry, relu=True), convolve(x, w, 0 * b, geometry).relu()
    )


@pytest.mark.parametrize("name", ["many tiles", "one pixel"])
def test_same_bits_with_any_threads(name):
    problem = make(name)
    assert_same_bits_with_any_threads(lambda: convolve(*problem))


def test_empty_batch_and_any_strides():
    x, w, b, geometry = make("plain, odd")
    expected = convolve(x, w, b, geometry)
    assert convolve(x[:0], w, b, geometry).shape == (0, *expected.shape[1:])
    gapped = torch.empty(*x.shape[:-1], 2 * x.shape[-1])[..., ::2].copy_(x)
    turned = w.permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0)
    torch.testing.assert_close(convolve(gapped, turned, b, geometry), expected)


def test_one_branch_of_several_rates():
    x = torch.randn(2, 20, 13, 9).to(memory_format=torch.channels_last)
    ws = [torch.randn(17, 20, k, k) for k in (1, 3, 3)]
    packed = [pack_op(w, 1) for w in ws]
    packed[1] = pack_op(ws[1], 1, True)
    expected = multi_rate_op(x, ws, None, [1, 2, 4], False, False, [])
    result = multi_rate_op(x, ws, None, [1, 2, 4], False, False, packed)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_transformed():
    for weight, groups in (
        (torch.randn(8, 8, 5, 5), 1),
        (torch.randn(8, 8, 3, 3), 2),
        (torch.randn(8, 8, 3, 3).double(), 1),
    ):
        with pytest.raises(RuntimeError, match="only 3x3 filters in float32 without groups"):
            pack_op(weight, groups, True)
    x, w, b, geometry = make("plain, odd")
    strided = ((2, 2), *geometry[1:])
    with pytest.raises(RuntimeError, match="packed is not this weight"):
        convolve(x, w, b, strided)
    torch.library.opcheck(pack_op, (w, 1, True))


def pays(change=None, size=33, rate=2, backend="native", outputs=64, **options):
    x = torch.empty(1, 64, size, size, **options)
    w = torch.empty(outputs, 64, 3, 3, **options)
    stride = change or (1, 1)
    return winograd_pays(backend, x, w, stride, (rate,) * 4, (rate, rate))


def test_where_it_pays():
    assert pays()
    assert pays(backend="auto")
    assert not pays(backend="torch")
    assert not pays((2, 2))
    assert not pays(outputs=16)
    assert not pays(dtype=torch.float64)
    assert not pays(device="meta")
    # Few pixels of each phase: hardly less to multiply than the taps that touch data.
    assert pays(size=65, rate=12)
    assert not pays(size=65, rate=24)
