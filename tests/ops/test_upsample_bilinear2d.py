"""ops.upsample_bilinear2d: literal cases, reference, gradients, contract, rejections."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from atrousx.ops import upsample_bilinear2d
from tests.ops.common import (
    FLOATING,
    FORMATS,
    assert_as_accurate_as_torch,
    assert_same_bits_with_any_threads,
    strided_views,
    to_float64,
)
from tests.optional import given, settings, st
from tests.reference import upsample_bilinear2d as reference

forward_op = torch.ops.atrousx.upsample_bilinear2d.default
backward_op = torch.ops.atrousx._upsample_bilinear2d_backward.default
SIZES = [((2, 3), (5, 7)), ((7, 5), (3, 2)), ((1, 1), (4, 3)), ((5, 4), (5, 4)), ((9, 9), (65, 33))]


def test_doubling_by_hand(device):
    row = torch.tensor([[[[0.0, 4.0]]]], device=device)
    expected = torch.tensor([[[[0.0, 1.0, 3.0, 4.0]]]], device=device)
    assert torch.equal(upsample_bilinear2d(row, (1, 4)), expected)


def test_align_corners_by_hand(device):
    row = torch.tensor([[[[0.0, 3.0]]]], device=device)
    expected = torch.tensor([[[[0.0, 1.0, 2.0, 3.0]]]], device=device)
    result = upsample_bilinear2d(row, (1, 4), align_corners=True)
    torch.testing.assert_close(result, expected)


def test_gradient_by_hand(device):
    row = torch.zeros(1, 1, 1, 2, device=device, requires_grad=True)
    upsample_bilinear2d(row, (1, 4)).backward(torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]]).to(device))
    # Weights of the left sample in the four outputs: 1, 3/4, 1/4, 0.
    assert row.grad is not None
    assert torch.equal(row.grad, torch.tensor([[[[3.25, 6.75]]]], device=device))


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("small", "large"), SIZES)
def test_against_oracle(device, small, large, align_corners, memory_format, dtype):
    values = torch.randn(2, 3, *small, dtype=dtype, device=device).to(memory_format=memory_format)
    check_against_oracle(values, large, align_corners)


def check_against_oracle(values, large, align_corners):
    small = values.shape[2:]
    values.requires_grad_()
    actual = upsample_bilinear2d(values, large, align_corners=align_corners)
    torch_result = F.interpolate(values, large, mode="bilinear", align_corners=align_corners)
    exact = reference.forward(to_float64(values), large, align_corners)
    assert_as_accurate_as_torch(actual, torch_result, exact)
    assert actual.stride() == torch_result.stride()

    grad = torch.randn_like(actual)
    (actual_grad,) = torch.autograd.grad(actual, values, grad)
    (torch_grad,) = torch.autograd.grad(torch_result, values, grad)
    exact = reference.backward(to_float64(grad), small, align_corners)
    assert_as_accurate_as_torch(actual_grad, torch_grad, exact)


# Sizes that reach every loop of the CPU kernels for any vector length: pixels shorter than a
# vector, and up to four vectors and more; outputs that read one vector of inputs, two, or inputs
# far apart; rows that are blended before or after; more rows than a vector has lanes.
SHAPES = [
    ((2, 1, 35, 33), (61, 70)),
    ((1, 1, 40, 70), (21, 36)),
    ((1, 2, 18, 70), (33, 35)),
    ((2, 3, 5, 400), (3, 9)),
    ((1, 5, 3, 200), (7, 40)),
    ((1, 7, 20, 50), (9, 31)),
    ((2, 11, 6, 9), (13, 20)),
    ((2, 17, 6, 9), (13, 20)),
    ((1, 20, 13, 40), (6, 17)),
    ((1, 40, 5, 7), (12, 7)),
    ((1, 64, 4, 3), (9, 5)),
    ((1, 70, 7, 4), (5, 11)),
    # Pixels that a CUDA block takes in pieces, with and without whole vectors.
    ((2, 150, 5, 14), (11, 29)),
    ((2, 152, 5, 14), (11, 29)),
    # More gradients reach an input than a CUDA block can hold.
    ((1, 1, 1, 1), (1, 999)),
]


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(("shape", "size"), SHAPES)
def test_every_loop_against_oracle(device, shape, size, memory_format, dtype):
    check_against_oracle(
        torch.randn(shape, device=device).to(dtype).to(memory_format=memory_format), size, False
    )


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("channels", [1, 3, 20])
def test_infinite_gradients_reach_only_their_inputs(device, channels, memory_format):
    # Every fourth output coincides with an input and has weight 0 for its neighbour.
    values = torch.randn(1, channels, 5, 5, device=device).to(memory_format=memory_format)
    values.requires_grad_()
    grad = torch.randn(1, channels, 17, 17, device=device)
    grad[0, 0, 8, 8] = torch.inf
    result = upsample_bilinear2d(values, (17, 17), align_corners=True)
    (gradient,) = torch.autograd.grad(result, values, grad)
    expected = torch.zeros_like(gradient, dtype=torch.bool)
    expected[0, 0, 2, 2] = True
    assert torch.equal(~gradient.isfinite(), expected)


def test_infinite_gradients_of_far_outputs_reach_only_their_inputs(device):
    values = torch.randn(1, 1, 1, 3, device=device, requires_grad=True)
    grad = torch.randn(1, 1, 1, 1025, device=device)
    grad[..., 512] = torch.inf  # at the middle input
    result = upsample_bilinear2d(values, (1, 1025), align_corners=True)
    (gradient,) = torch.autograd.grad(result, values, grad)
    assert gradient.isfinite().flatten().tolist() == [True, False, True]


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("channels", [64, 3, 4])
def test_columns_that_nothing_reads_have_no_gradient(device, channels, memory_format):
    # A separate scale factor leaves the last columns of the input unread.
    grad = torch.randn(1, channels, 3, 1, device=device).to(memory_format=memory_format)
    result = backward_op(grad, 12, 199, False, 0.01, 0.01)
    exact = reference.backward(to_float64(grad), (12, 199), False, scale_factor=0.01)
    assert (exact[..., 51:] == 0).all()
    np.testing.assert_allclose(to_float64(result), exact, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_half_is_widened_and_rounded_as_pytorch_does(device, dtype):
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int16, device=device)
    halves = bits.view(dtype)
    half = halves[halves.isfinite()][None, None, None]
    width = half.shape[-1]
    # One row becomes three equal rows. Each value is converted to float32 and rounded back to
    # itself.
    assert torch.equal(upsample_bilinear2d(half, (3, width)), half.expand(1, 1, 3, width))
    # Means of neighbours must be rounded, including subnormals, ties and overflow.
    expected = F.interpolate(half.float(), (1, 2 * width), mode="bilinear").to(dtype)
    assert torch.equal(upsample_bilinear2d(half, (1, 2 * width)), expected)
    for special in (torch.inf, -torch.inf, torch.nan):
        result = upsample_bilinear2d(torch.full((1, 1, 1, 40), special, dtype=dtype), (3, 40))
        assert torch.equal(result.isnan(), result != special)


@given(
    size=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    scale=st.tuples(st.floats(0.2, 5), st.floats(0.2, 5)),
    align_corners=st.booleans(),
    recompute=st.booleans(),
)
@settings(deadline=None)
def test_scale_factor_as_interpolate(size, scale, align_corners, recompute):
    values = torch.randn(1, 2, *size, dtype=torch.float64)
    options = {
        "scale_factor": scale,
        "align_corners": align_corners,
        "recompute_scale_factor": recompute,
    }
    if any(int(extent * s) == 0 for extent, s in zip(size, scale, strict=True)):
        with pytest.raises(ValueError, match="output size must be positive"):
            upsample_bilinear2d(values, **options)
        return
    expected = F.interpolate(values, mode="bilinear", **options)
    torch.testing.assert_close(upsample_bilinear2d(values, **options), expected)


def test_pytorch_sample_inputs():
    pytest.importorskip("expecttest")  # PyTorch's test database imports it
    from torch.testing._internal.common_methods_invocations import op_db

    (info,) = (
        op
        for op in op_db
        if op.name == "nn.functional.interpolate" and op.variant_test_name == "bilinear"
    )
    count = 0
    for sample in info.sample_inputs("cpu", torch.float64, requires_grad=False):
        kwargs = dict(sample.kwargs)
        assert kwargs.pop("mode") == "bilinear"
        if kwargs.get("align_corners") is None:
            kwargs["align_corners"] = False
        expected = F.interpolate(sample.input, *sample.args, **sample.kwargs)
        torch.testing.assert_close(
            upsample_bilinear2d(sample.input, *sample.args, **kwargs), expected
        )
        count += 1
    assert count >= 4


def test_pytorch_rejections():
    bad = [
        {"size": (4, 4), "scale_factor": 2.0},
        {},
        {"size": (0, 4)},
        {"size": (-1, 4)},
        {"size": (4, 4, 4)},
        {"scale_factor": (1.0, 2.0, 3.0)},
        {"scale_factor": 0.1},
        {"size": (4, 4), "recompute_scale_factor": True},
    ]
    for kwargs in bad:
        values = torch.randn(1, 2, 3, 3)
        with pytest.raises((ValueError, RuntimeError, TypeError)):
            F.interpolate(values, mode="bilinear", **kwargs)
        with pytest.raises((ValueError, RuntimeError, TypeError)):
            upsample_bilinear2d(values, **kwargs)


@pytest.mark.parametrize("align_corners", [False, True])
def test_gradcheck(device, align_corners):
    values = torch.randn(2, 2, 4, 3, dtype=torch.float64, device=device, requires_grad=True)

    def resample(x):
        return upsample_bilinear2d(x, (3, 7), align_corners=align_corners)

    assert torch.autograd.gradcheck(resample, values)
    assert torch.autograd.gradgradcheck(resample, values)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("scales", [(None, None), (2.3, 1.5)])
def test_opcheck(device, memory_format, scales):
    values = torch.randn(2, 3, 4, 5, device=device).to(memory_format=memory_format)
    values.requires_grad_()
    torch.library.opcheck(forward_op, (values, (9, 7), False, *scales))
    torch.library.opcheck(backward_op, (values, 2, 3, False, *scales))
    torch.library.opcheck(forward_op, (values.detach()[:0], (9, 7), True, *scales))


def test_any_strides(device):
    values = torch.randn(2, 3, 4, 5, device=device)
    expected = upsample_bilinear2d(values, (7, 9))
    for view in strided_views(values):
        torch.testing.assert_close(upsample_bilinear2d(view, (7, 9)), expected)
    broadcast = values[:1].expand(3, -1, -1, -1)
    torch.testing.assert_close(upsample_bilinear2d(broadcast, (7, 9))[2], expected[0])
    # The gradient from .sum().backward() is expanded: it has zero strides.
    values.requires_grad_()
    upsample_bilinear2d(values, (7, 9)).sum().backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad.sum().item(), 2.0 * 3 * 7 * 9)


def test_empty_batch(device):
    values = torch.randn(0, 3, 4, 5, device=device, requires_grad=True)
    result = upsample_bilinear2d(values, 8)
    assert result.shape == (0, 3, 8, 8)
    result.sum().backward()
    assert values.grad is not None
    assert values.grad.shape == values.shape


@pytest.mark.parametrize("memory_format", FORMATS)
def test_deterministic(memory_format):
    values = torch.randn(2, 5, 33, 31).to(memory_format=memory_format).requires_grad_()
    grad = torch.randn(2, 5, 129, 65)
    assert_same_bits_with_any_threads(lambda: upsample_bilinear2d(values, (129, 65)))
    assert_same_bits_with_any_threads(
        lambda: torch.autograd.grad(upsample_bilinear2d(values, (129, 65)), values, grad)[0]
    )


def test_equal_sizes_copy(device):
    values = torch.randn(1, 2, 37, 53, device=device)
    assert torch.equal(upsample_bilinear2d(values, (37, 53)), values)
    assert torch.equal(upsample_bilinear2d(values, scale_factor=(1.01, 1.0)), values)


def test_autocast_leaves_float64_alone(device):
    values = torch.randn(1, 2, 4, 4, device=device)
    with torch.autocast(device.type, torch.bfloat16):
        assert upsample_bilinear2d(values.double(), 8).dtype == torch.float64


def test_compile_and_export(device):
    def resample(x):
        return upsample_bilinear2d(x, (2 * x.shape[2], 9)).relu()

    values = torch.randn(1, 2, 4, 5, device=device)
    compiled = torch.compile(resample, fullgraph=True, dynamic=True, backend="aot_eager")
    for height in (4, 6):
        values = torch.randn(1, 2, height, 5, device=device)
        torch.testing.assert_close(compiled(values), resample(values))

    class Module(torch.nn.Module):
        def forward(self, x):
            return resample(x)

    exported = torch.export.export(Module(), (values,))
    torch.testing.assert_close(exported.module()(values), resample(values))


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"input": [1.0], "size": 2}, TypeError, "input must be a torch.Tensor, got list"),
        ({"input": torch.ones(1, 1, 2, 2).int(), "size": 2}, TypeError, "got int32"),
        ({"input": torch.ones(1, 2, 2), "size": 2}, ValueError, r"\[N, C, H, W\].*\(1, 2, 2\)"),
        ({"input": torch.ones(1, 1, 0, 2), "size": 2}, ValueError, "input must have non-empty"),
        ({"size": None}, ValueError, "exactly one of size and scale_factor"),
        ({"size": 2, "scale_factor": 2}, ValueError, "exactly one of size and scale_factor"),
        ({"size": (0, 2)}, ValueError, r"output size must be positive, got \(0, 2\)"),
        ({"size": 2.5}, TypeError, "size must be an int or a pair of ints, got 2.5"),
        ({"size": "ab"}, TypeError, "size must be an int or a pair of ints"),
        ({"scale_factor": -1.0}, ValueError, "scale_factor must be positive and finite"),
        ({"scale_factor": float("nan")}, ValueError, "scale_factor must be positive and finite"),
        ({"scale_factor": 0.2}, ValueError, "output size must be positive"),
    ],
)
def test_rejections(kwargs, error, message):
    arguments = {"input": torch.ones(1, 1, 2, 2), **kwargs}
    with pytest.raises(error, match=message):
        upsample_bilinear2d(**arguments)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: forward_op(x, (5,), False),
        lambda x: forward_op(x, (5, 0), False),
        lambda x: forward_op(x[0], (5, 5), False),
        lambda x: forward_op(x[:, :, :0], (5, 5), False),
        lambda x: backward_op(x[0], 3, 3, False),
        lambda x: backward_op(x[..., :0], 3, 3, False),
        lambda x: backward_op(x, 3, 0, False),
    ],
)
def test_direct_calls_cannot_read_out_of_bounds(call):
    with pytest.raises(RuntimeError):
        call(torch.ones(1, 2, 4, 4))
