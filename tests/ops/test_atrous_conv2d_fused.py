"""What inference adds to atrous_conv2d: a fused end of the sum, a weight packed before."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.ops.atrous_conv2d_cases import forward_op, fused_op, make, pack_op
from tests.ops.common import (
    FLOATING,
    FORMATS,
    assert_as_accurate_as_torch,
    strided_views,
    to_float64,
)
from tests.reference import atrous_conv2d as reference


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("name", ["rate 6 on a small map", "groups", "narrow groups", "depthwise"])
def test_fused_epilogue(device, name, memory_format, dtype):
    x, w, b, (stride, padding, dilation, groups) = make(name, dtype, device, memory_format)
    geometry = (stride, (*padding, *padding), dilation, groups)
    plain = forward_op(x, w, b, *geometry)
    full = torch.randn_like(plain)
    for residual in (None, full, full[:1, :, :1, :1].expand_as(plain), strided_views(full)[1]):
        theirs = F.conv2d(x, w, b, stride, padding, dilation, groups)
        exact = reference.forward(*map(to_float64, (x, w, b)), *geometry)
        if residual is not None:
            theirs, exact = theirs + residual, exact + to_float64(residual)
        for relu in (False, True):
            ours = fused_op(x, w, b, residual, relu, *geometry)
            assert_as_accurate_as_torch(
                ours, theirs.relu() if relu else theirs, exact.clip(0) if relu else exact
            )
            assert ours.is_contiguous(memory_format=memory_format)
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


@pytest.mark.parametrize("memory_format", FORMATS)
def test_large_weight_by_some_outputs_at_a_time(memory_format):
    x = torch.randn(2, 600, 3, 2).to(memory_format=memory_format)
    w, b, residual = torch.randn(3584, 600, 2, 2), torch.randn(3584), torch.randn(2, 3584, 2, 1)
    geometry = ((1, 1), (0, 0, 0, 0), (1, 1), 1)
    result = fused_op(x, w, b, residual, True, *geometry)
    torch.testing.assert_close(result, (F.conv2d(x, w, b) + residual).relu(), rtol=1e-4, atol=1e-3)
    # Packed before, the weight is taken whole.
    assert torch.equal(result, fused_op(x, w, b, residual, True, *geometry, False, pack_op(w, 1)))
