"""Inference parts of atrous_conv2d: a fused epilogue, and a weight that is packed beforehand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.ops.atrous_conv2d.cases import (
    backward_input_op,
    forward_op,
    fused_op,
    make,
    pack_op,
)
from tests.ops.common import (
    FLOATING,
    FORMATS,
    assert_as_accurate_as_torch,
    assert_same_bits_with_any_threads,
    strided_views,
    to_float64,
)
from tests.reference import atrous_conv2d as reference


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(
    "name",
    [
        "rate 6 on a small map",
        "groups",
        "narrow groups",
        "depthwise",
        "depthwise, 8 channels, strided",
    ],
)
def test_fused_epilogue(device, name, memory_format, dtype):
    x, w, b, (stride, padding, dilation, groups) = make(name, dtype, device, memory_format)
    geometry = (stride, (*padding, *padding), dilation, groups)
    plain = forward_op(x, w, b, *geometry)
    full = torch.randn_like(plain)
    for residual in (None, full, full[:1, :, :1, :1].expand_as(plain), strided_views(full)[1]):
        torch_result = F.conv2d(x, w, b, stride, padding, dilation, groups)
        exact = reference.forward(*map(to_float64, (x, w, b)), *geometry)
        if residual is not None:
            torch_result, exact = torch_result + residual, exact + to_float64(residual)
        for relu in (False, True):
            actual = fused_op(x, w, b, residual, relu, *geometry)
            assert_as_accurate_as_torch(
                actual,
                torch_result.relu() if relu else torch_result,
                exact.clip(0) if relu else exact,
            )
            assert actual.is_contiguous(memory_format=memory_format)
    torch.library.opcheck(fused_op, (x, w, b, full, True, *geometry))
    with pytest.raises(RuntimeError, match="residual does not have the size"):
        fused_op(x, w, b, full[:, :-1], False, *geometry)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("name", ["groups", "narrow groups", "depthwise, stride 2"])
def test_relu_keeps_nan_and_ends_infinities(device, name, memory_format):
    x, w, b, (stride, padding, dilation, groups) = make(name, torch.float32, device, memory_format)
    x[0, 0, 0, 0] = torch.nan
    x[-1, -1, -1, -1] = torch.inf
    result = fused_op(x, w, b, None, True, stride, (*padding, *padding), dilation, groups)
    expected = F.conv2d(x, w, b, stride, padding, dilation, groups).relu()
    assert torch.equal(result.isnan(), expected.isnan())
    assert torch.equal(result.isinf(), expected.isinf())
    assert (result[~result.isnan()] >= 0).all()


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("name", ["groups", "narrow groups", "21 outputs"])
def test_packed_weight(name, memory_format, dtype):
    x, w, b, (stride, padding, dilation, groups) = make(name, dtype, "cpu", memory_format)
    geometry = (stride, (*padding, *padding), dilation, groups)
    packed = pack_op(w, groups)
    assert (packed.numel() > 0) == (name != "narrow groups")
    result = fused_op(x, w, b, None, True, *geometry, False, packed)
    assert torch.equal(result, fused_op(x, w, b, None, True, *geometry))
    torch.library.opcheck(pack_op, (w, groups))
    if packed.numel() > 0:
        with pytest.raises(RuntimeError, match="packed is not this weight"):
            fused_op(x, w, b, None, True, *geometry, False, packed[1:])


# N, C, K, groups, (H, W), (KH, KW), stride, padding, dilation. Weights of 8 M elements, or smaller
# ones that are large beside their pixels. Odd numbers of channels and outputs; chunks of one slab
# and of several.
LARGE = {
    "8 M": (2, 600, 3584, 1, (3, 2), (2, 2), (1, 1), (0, 0), (1, 1)),
    "16 taps": (1, 133, 290, 1, (5, 6), (4, 4), (1, 1), (3, 3), (2, 2)),
    "81 taps, strided": (2, 70, 257, 1, (6, 5), (9, 9), (2, 1), (8, 6), (2, 2)),
    "pointwise": (1, 700, 300, 1, (3, 4), (1, 1), (1, 1), (0, 0), (1, 1)),
    "groups": (1, 260, 520, 2, (4, 3), (3, 2), (1, 1), (2, 1), (2, 1)),
}


def make_large(name, dtype, memory_format):
    batch, channels, outputs, groups, size, taps, stride, padding, dilation = LARGE[name]
    x = torch.randn(batch, channels, *size, dtype=dtype).to(memory_format=memory_format)
    w = torch.randn(outputs, channels // groups, *taps, dtype=dtype)
    b = torch.randn(outputs, dtype=dtype)
    geometry = (stride, (*padding, *padding), dilation, groups)
    plain = F.conv2d(x, w, b, stride, padding, dilation, groups)
    return x, w, b, torch.randn_like(plain), plain, geometry


# Not in float64: in such long sums a float64 reference has as much rounding error as the result.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("name", LARGE)
def test_large_weight_against_oracle(name, memory_format, dtype):
    x, w, b, other, plain, geometry = make_large(name, dtype, memory_format)
    actual = fused_op(x, w, b, other, True, *geometry)
    exact = reference.forward(*map(to_float64, (x, w, b)), *geometry) + to_float64(other)
    assert_as_accurate_as_torch(actual, (plain + other).relu(), exact.clip(0))
    stride, padding, dilation, groups = geometry
    torch_result = torch.ops.aten.convolution_backward(
        other,
        x,
        w,
        None,
        stride,
        padding[:2],
        dilation,
        False,
        (0, 0),
        groups,
        (True, False, False),
    )[0]
    exact = reference.backward_input(*map(to_float64, (other, w)), x.shape[2:], *geometry)
    assert_as_accurate_as_torch(
        backward_input_op(other, w, x.shape, *geometry), torch_result, exact
    )


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("name", LARGE)
def test_large_weight_packed_by_tasks_or_before(name, dtype):
    x, w, b, residual, _, geometry = make_large(name, dtype, torch.contiguous_format)

    def run(packed=None):
        return fused_op(x, w, b, residual, True, *geometry, False, packed)

    assert torch.equal(run(), run(pack_op(w, geometry[-1])))
    assert_same_bits_with_any_threads(run)
