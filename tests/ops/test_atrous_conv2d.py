"""ops.atrous_conv2d: literal cases, oracle, gradients, contract, rejections."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing._internal.common_methods_invocations import op_db

from atrousx.ops import atrous_conv2d, live_fraction
from atrousx.ops._backend import tf32_switch
from tests.ops.common import (
    FLOATING,
    FORMATS,
    assert_as_accurate_as_torch,
    assert_same_bits_with_any_threads,
    strided_views,
    to_float64,
)
from tests.reference import atrous_conv2d as reference

forward_op = torch.ops.atrousx.atrous_conv2d.default
fused_op = torch.ops.atrousx._atrous_conv2d_fused.default
pack_op = torch.ops.atrousx._atrous_conv2d_pack_weight.default
backward_input_op = torch.ops.atrousx._atrous_conv2d_backward_input.default
backward_weight_op = torch.ops.atrousx._atrous_conv2d_backward_weight.default

# N, C, K, groups, (H, W), (KH, KW), stride, padding, dilation
CASES = {
    "rate 6 on a small map": (2, 20, 37, 1, (9, 7), (3, 3), (1, 1), (6, 6), (6, 6)),
    "plain": (1, 16, 8, 1, (5, 6), (3, 3), (1, 1), (1, 1), (1, 1)),
    "pointwise, strided": (2, 9, 16, 1, (5, 7), (1, 1), (2, 2), (0, 0), (1, 1)),
    "strided, unequal axes": (1, 3, 10, 1, (11, 13), (4, 3), (3, 2), (2, 5), (2, 3)),
    "groups": (2, 16, 24, 2, (6, 5), (3, 2), (1, 2), (2, 1), (2, 1)),
    "narrow groups": (1, 8, 12, 4, (7, 6), (3, 3), (2, 1), (2, 3), (1, 3)),
    "depthwise": (2, 19, 19, 19, (9, 8), (3, 3), (1, 1), (2, 2), (2, 2)),
    "depthwise, many channels": (1, 83, 83, 83, (4, 5), (3, 3), (1, 1), (3, 2), (3, 2)),
    "depthwise, multiplied": (1, 3, 9, 3, (6, 7), (3, 3), (1, 2), (1, 1), (1, 1)),
    "one output": (1, 30, 1, 1, (5, 5), (3, 3), (1, 1), (2, 2), (2, 2)),
    "pixels without a live tap": (1, 8, 8, 1, (1, 3), (2, 2), (1, 1), (5, 4), (3, 2)),
}
# Several slabs of channels, tiles, blocks of outputs, steps of packing. Not in float64: an oracle
# in float64 rounds such long sums as much as what it would judge.
WIDE = {
    "channels and outputs past a block": (1, 131, 70, 1, (19, 20), (3, 3), (1, 1), (6, 6), (6, 6)),
    "21 outputs": (2, 65, 21, 1, (13, 12), (3, 3), (1, 1), (4, 4), (4, 4)),
    "more taps than a product is deep": (1, 9, 8, 1, (19, 20), (26, 25), (1, 1), (13, 12), (1, 1)),
    "slabs by steps": (1, 24000, 16, 2, (10, 10), (1, 2), (1, 1), (0, 1), (1, 3)),
}


def make(name, dtype, device, memory_format=torch.contiguous_format):
    batch, channels, outputs, groups, size, taps, stride, padding, dilation = (CASES | WIDE)[name]
    x = torch.randn(batch, channels, *size, dtype=dtype, device=device)
    w = torch.randn(outputs, channels // groups, *taps, dtype=dtype, device=device)
    b = torch.randn(outputs, dtype=dtype, device=device)
    x = x.to(memory_format=memory_format)
    return x, w, b, (stride, padding, dilation, groups)


def test_by_hand(device):
    # Two taps 2 apart, one pixel of padding: 10 + 2, 20 + 3, ...; the ends have one live tap.
    row = torch.tensor([[[[1.0, 2.0, 3.0]]]], device=device)
    taps = torch.tensor([[[[10.0, 1.0]]]], device=device)
    result = atrous_conv2d(row, taps, torch.tensor([0.5], device=device), 1, (0, 1), (1, 2))
    assert result.tolist() == [[[[2.5, 13.5, 20.5]]]]


def test_gradients_by_hand(device):
    row = torch.tensor([[[[1.0, 2.0, 3.0]]]], device=device, requires_grad=True)
    taps = torch.tensor([[[[10.0, 1.0]]]], device=device, requires_grad=True)
    bias = torch.zeros(1, device=device, requires_grad=True)
    result = atrous_conv2d(row, taps, bias, padding=(0, 1), dilation=(1, 2))
    result.backward(torch.tensor([[[[1.0, 100.0, 10000.0]]]], device=device))
    assert row.grad.tolist() == [[[[1000.0, 100001.0, 100.0]]]]
    assert taps.grad.tolist() == [[[[1 * 100 + 2 * 10000, 2 * 1 + 3 * 100]]]]
    assert bias.grad.tolist() == [10101.0]


def test_same_pads_the_odd_pixel_below_and_right(device):
    row = torch.tensor([[[[1.0, 2.0, 3.0]]]], device=device)
    taps = torch.tensor([[[[10.0, 1.0]]]], device=device)
    assert atrous_conv2d(row, taps, padding="same").tolist() == [[[[12.0, 23.0, 30.0]]]]
    assert atrous_conv2d(row, taps, padding="valid").tolist() == [[[[12.0, 23.0]]]]


def test_padding_is_never_multiplied(device):
    # Infinity times padding would be NaN, in all three passes.
    x = torch.ones(1, 1, 2, 2, device=device, requires_grad=True)
    w = torch.full((1, 1, 3, 3), torch.inf, device=device)
    w[0, 0, 1, 1] = 3
    w.requires_grad_()
    y = atrous_conv2d(x, w, padding=2, dilation=2)
    assert (y == 3).all()
    y.backward(torch.full_like(y, torch.inf))
    assert (x.grad == torch.inf).all()
    assert w.grad.isfinite().sum() == 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("name", WIDE)
def test_long_sums_against_oracle(device, name, memory_format, dtype):
    test_against_oracle(device, name, memory_format, dtype)


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("name", CASES)
def test_against_oracle(device, name, memory_format, dtype):
    x, w, b, (stride, padding, dilation, groups) = make(name, dtype, device, memory_format)
    tensors = [t.requires_grad_() for t in (x, w, b)]
    ours = atrous_conv2d(x, w, b, stride, padding, dilation, groups)
    theirs = F.conv2d(x, w, b, stride, padding, dilation, groups)
    geometry = (stride, (*padding, *padding), dilation, groups)
    exact = reference.forward(*map(to_float64, tensors), *geometry)
    assert_as_accurate_as_torch(ours, theirs, exact)
    assert ours.is_contiguous(memory_format=memory_format)

    grad = torch.randn_like(ours)
    our_grads = torch.autograd.grad(ours, tensors, grad)
    their_grads = torch.autograd.grad(theirs, tensors, grad)
    g = to_float64(grad)
    exact_grads = (
        reference.backward_input(g, to_float64(w), x.shape[2:], *geometry),
        reference.backward_weight(g, to_float64(x), w.shape[2:], *geometry),
        g.sum((0, 2, 3)),
    )
    for our_grad, their_grad, exact in zip(our_grads, their_grads, exact_grads, strict=True):
        assert_as_accurate_as_torch(our_grad, their_grad, exact)


@st.composite
def problems(draw):
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    channels, outputs = groups * draw(st.integers(1, 12)), groups * draw(st.integers(1, 36))
    axes = []
    for _ in range(2):
        taps, stride = draw(st.integers(1, 4)), draw(st.integers(1, 3))
        dilation, padding = draw(st.integers(1, 6)), draw(st.integers(0, 9))
        least = max(1, dilation * (taps - 1) + 1 - 2 * padding)
        axes.append((least + draw(st.integers(0, 12)), taps, stride, padding, dilation))
    size, taps, stride, padding, dilation = zip(*axes, strict=True)
    x = torch.randn(draw(st.integers(0, 3)), channels, *size, dtype=torch.float64)
    w = torch.randn(outputs, channels // groups, *taps, dtype=torch.float64)
    formats = [draw(st.sampled_from(FORMATS)) for _ in range(2)]
    x, w = (t.to(memory_format=f) for t, f in zip((x, w), formats, strict=True))
    return x.requires_grad_(), w.requires_grad_(), (stride, padding, dilation, groups)


@given(problem=problems())
@settings(deadline=None, max_examples=60)
def test_any_geometry_as_conv2d(problem):
    x, w, (stride, padding, dilation, groups) = problem
    ours = atrous_conv2d(x, w, None, stride, padding, dilation, groups)
    theirs = F.conv2d(x, w, None, stride, padding, dilation, groups)
    torch.testing.assert_close(ours, theirs)
    grad = torch.randn_like(ours)
    our_grads = torch.autograd.grad(ours, (x, w), grad)
    torch.testing.assert_close(our_grads, torch.autograd.grad(theirs, (x, w), grad))


def _conv2d_info():
    (info,) = (i for i in op_db if i.name == "nn.functional.conv2d")
    return info


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_pytorch_sample_inputs(device, dtype):
    count = 0
    for sample in _conv2d_info().sample_inputs(device, dtype, requires_grad=False):
        with torch.backends.cudnn.flags(allow_tf32=False):
            expected = F.conv2d(sample.input, *sample.args, **sample.kwargs)
            actual = atrous_conv2d(sample.input, *sample.args, **sample.kwargs)
        torch.testing.assert_close(actual, expected)
        count += 1
    assert count >= 10


def test_pytorch_error_inputs():
    count = 0
    for bad in _conv2d_info().error_inputs("cpu"):
        sample = bad.sample_input
        with pytest.raises(bad.error_type):
            F.conv2d(sample.input, *sample.args, **sample.kwargs)
        with pytest.raises((ValueError, TypeError, RuntimeError)):
            atrous_conv2d(sample.input, *sample.args, **sample.kwargs)
        count += 1
    assert count >= 5


GRADCHECK = ["strided, unequal axes", "narrow groups", "pixels without a live tap"]


@pytest.mark.parametrize("name", GRADCHECK)
def test_gradcheck(device, name):
    x, w, b, options = make(name, torch.float64, device)
    # A corner of every tensor is enough: each element is checked by itself.
    x, w, b = x[:, : 2 * options[3]], w[: 2 * options[3], :2], b[: 2 * options[3]]
    tensors = [t.clone().requires_grad_() for t in (x, w, b)]

    def convolve(*tensors):
        return atrous_conv2d(*tensors, *options)

    assert torch.autograd.gradcheck(convolve, tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(convolve, tensors, fast_mode=True)


@pytest.mark.parametrize("name", ["groups", "depthwise"])
def test_third_derivative(device, name):
    x, w, _, options = make(name, torch.float64, device)
    results = []
    for convolve in (atrous_conv2d, F.conv2d):
        leaves = [t.clone().requires_grad_() for t in (x, w)]
        value = convolve(*leaves, None, *options)
        for _ in range(3):
            grads = torch.autograd.grad((value**3).sum() / 100, leaves, create_graph=True)
            value = sum(g.sum() for g in grads)
        results.append(value)
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("name", ["strided, unequal axes", "depthwise", "pointwise, strided"])
def test_opcheck(device, name, memory_format):
    x, w, b, (stride, padding, dilation, groups) = make(name, torch.float32, device, memory_format)
    geometry = (stride, (*padding, *padding), dilation, groups)
    grad = torch.randn_like(forward_op(x, w, None, *geometry))
    x, w, b, grad = (t.requires_grad_() for t in (x, w, b, grad))
    torch.library.opcheck(forward_op, (x, w, b, *geometry))
    torch.library.opcheck(backward_input_op, (grad, w, x.shape, *geometry))
    torch.library.opcheck(backward_weight_op, (grad, x, w.shape, *geometry))
    torch.library.opcheck(forward_op, (x.detach()[:0], w.detach(), None, *geometry))


@pytest.mark.parametrize("name", ["rate 6 on a small map", "depthwise"])
def test_any_strides(device, name):
    x, w, _, options = make(name, torch.float64, device)
    expected = F.conv2d(x, w, None, *options)
    for a, b in zip(strided_views(x), strided_views(w), strict=True):
        torch.testing.assert_close(atrous_conv2d(a, b, None, *options), expected)
    broadcast = x[:1].expand(3, -1, -1, -1)
    torch.testing.assert_close(atrous_conv2d(broadcast, w, None, *options)[2], expected[0])
    # An expanded gradient, as .sum().backward() makes it, has zero strides.
    for convolve in (atrous_conv2d, F.conv2d):
        leaves = [t.clone().requires_grad_() for t in (x, w)]
        convolve(*leaves, None, *options).sum().backward()
        expected = [t.grad for t in leaves] if convolve is atrous_conv2d else expected
    torch.testing.assert_close(expected, [t.grad for t in leaves])


@pytest.mark.parametrize("memory_format", FORMATS)
def test_memory_format_of_either_operand(device, memory_format):
    x, w = torch.randn(1, 8, 5, 6, device=device), torch.randn(9, 8, 3, 3, device=device)
    for a, b in ((x.to(memory_format=memory_format), w), (x, w.to(memory_format=memory_format))):
        assert atrous_conv2d(a, b).stride() == F.conv2d(a, b).stride()


def test_unbatched(device):
    x, w, b, options = make("groups", torch.float64, device)
    result = atrous_conv2d(x[0], w, b, *options)
    torch.testing.assert_close(result, F.conv2d(x[0], w, b, *options))


def test_empty_batch_and_no_channels(device):
    x = torch.randn(0, 8, 5, 5, device=device, requires_grad=True)
    w = torch.randn(9, 8, 3, 3, device=device, requires_grad=True)
    result = atrous_conv2d(x, w, padding=1)
    assert result.shape == (0, 9, 5, 5)
    result.sum().backward()
    assert x.grad.shape == x.shape
    assert torch.equal(w.grad, torch.zeros_like(w))
    nothing, bias = torch.randn(1, 0, 5, 5, device=device), torch.ones(9, device=device)
    result = atrous_conv2d(nothing, torch.randn(9, 0, 3, 3, device=device), bias)
    assert torch.equal(result, torch.ones(1, 9, 3, 3, device=device))


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("groups", [1, 60])
def test_deterministic(memory_format, groups):
    x = torch.randn(2, 60, 33, 31).to(memory_format=memory_format).requires_grad_()
    w = torch.randn(120, 60 // groups, 3, 3, requires_grad=True)
    grad = torch.randn(2, 120, 33, 31)

    def run():
        return atrous_conv2d(x, w, None, 1, 6, 6, groups)

    assert_same_bits_with_any_threads(run)
    for leaf in (x, w):
        assert_same_bits_with_any_threads(
            lambda leaf=leaf: torch.autograd.grad(run(), leaf, grad)[0]
        )


def test_autocast_computes_in_lower_precision(device):
    x, w, b, options = make("groups", torch.float32, device)
    x.requires_grad_()
    with torch.autocast(device.type, torch.bfloat16):
        result = atrous_conv2d(x, w.bfloat16(), b, *options)
        assert result.dtype == torch.bfloat16
    result.float().sum().backward()
    assert x.grad.dtype == torch.float32


def test_compile_and_export(device):
    w = torch.randn(9, 3, 3, 3, device=device, requires_grad=True)

    def convolve(x):
        return atrous_conv2d(x, w, None, 1, "same", 2).relu()

    compiled = torch.compile(convolve, fullgraph=True, dynamic=True, backend="aot_eager")
    for height in (8, 11):
        x = torch.randn(1, 3, height, 7, device=device)
        torch.testing.assert_close(compiled(x), convolve(x))
        ours = torch.autograd.grad(compiled(x).square().sum(), w)
        torch.testing.assert_close(ours, torch.autograd.grad(convolve(x).square().sum(), w))

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(w.detach())

        def forward(self, x):
            return atrous_conv2d(x, self.weight, None, 2, 1, 2)

    exported = torch.export.export(Module(), (x,))
    torch.testing.assert_close(exported.module()(x), Module()(x))


X, W = torch.ones(1, 4, 5, 5), torch.ones(6, 4, 3, 3)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"input": [1.0]}, TypeError, "input must be a torch.Tensor, got list"),
        ({"weight": None}, TypeError, "weight must be a torch.Tensor, got NoneType"),
        ({"input": X.int()}, TypeError, "input must be float32.*got int32"),
        ({"input": X[0, 0]}, ValueError, r"\[N, C, H, W\] or 3 \[C, H, W\].*\(5, 5\)"),
        ({"weight": W[0]}, ValueError, r"weight must have 4 dimensions.*\(4, 3, 3\)"),
        ({"weight": W.double()}, RuntimeError, "weight must have the dtype of input"),
        ({"bias": torch.ones(6).double()}, RuntimeError, "bias must have the dtype of input"),
        ({"bias": torch.ones(5)}, ValueError, r"bias must have shape \(6,\).*got \(5,\)"),
        ({"bias": torch.ones(6, 1)}, ValueError, r"bias must have shape \(6,\)"),
        ({"weight": W[:, :3]}, ValueError, "needs an input of 3 channels"),
        ({"weight": W[:, :2]}, ValueError, "needs an input of 2 channels"),
        ({"weight": W[:5, :2], "groups": 2}, ValueError, r"outputs that groups \(2\) divides"),
        ({"weight": W[:0]}, ValueError, "weight must have non-empty K, KH and KW"),
        ({"weight": W[..., :0]}, ValueError, "weight must have non-empty K, KH and KW"),
        ({"input": X[:, :, :0]}, ValueError, "input must have a non-empty H and W"),
        ({"groups": 0}, ValueError, "groups must be positive, got 0"),
        ({"groups": 1.0}, TypeError, "groups must be an int, got 1.0"),
        ({"stride": 0}, ValueError, "stride must be positive, got 0"),
        ({"stride": (1, 2, 3)}, TypeError, "stride must be an int or a pair of ints"),
        ({"dilation": (1, -2)}, ValueError, r"dilation must be positive, got \(1, -2\)"),
        ({"padding": -1}, ValueError, "padding must not be negative, got -1"),
        ({"padding": (0, 1, 2)}, TypeError, "padding must be an int or a pair of ints"),
        ({"padding": "reflect"}, ValueError, "'same', 'valid', an int or a pair.*'reflect'"),
        ({"padding": "same", "stride": 2}, ValueError, "padding='same' needs stride 1"),
        ({"dilation": 3}, ValueError, r"output would be empty: input is \(5, 5\) padded by"),
    ],
)
def test_rejections(kwargs, error, message):
    arguments = {"input": X, "weight": W, **kwargs}
    with pytest.raises(error, match=message):
        atrous_conv2d(**arguments)


@pytest.mark.parametrize(
    "change",
    [
        {0: X[0]},
        {1: W[:, :2]},
        {1: W.double()},
        {2: torch.ones(2)},
        {3: (0, 1)},
        {4: (0, 0, 0)},
        {4: (0, -1, 0, 0)},
        {5: (1, 3)},
        {6: 0},
    ],
)
def test_direct_calls_are_guarded(change):
    arguments = [X, W, None, (1, 1), (0, 0, 0, 0), (1, 1), 1]
    for index, value in change.items():
        arguments[index] = value
    with pytest.raises((RuntimeError, ValueError)):
        forward_op(*arguments)


def test_direct_calls_of_backward_are_guarded():
    geometry = ((1, 1), (0, 0, 0, 0), (1, 1), 1)
    grad = torch.ones(1, 6, 3, 3)
    with pytest.raises(RuntimeError, match="grad_output"):
        backward_input_op(grad[:, :, :2], W, X.shape, *geometry)
    with pytest.raises(RuntimeError, match="channels and groups"):
        backward_weight_op(grad, X, (6, 3, 3, 3), *geometry)


@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    taps=st.integers(1, 5),
    stride=st.integers(1, 3),
    padding=st.integers(0, 20),
    dilation=st.integers(1, 18),
)
def test_live_fraction_counts(size, taps, stride, padding, dilation):
    if min(size) + 2 * padding <= dilation * (taps - 1):
        with pytest.raises(ValueError, match="output would be empty"):
            live_fraction(size, taps, stride, padding, dilation)
        return
    # Ones convolved with ones count the live taps.
    ones = torch.ones(1, 1, *size, dtype=torch.float64)
    counts = F.conv2d(ones, torch.ones(1, 1, taps, taps).double(), None, stride, padding, dilation)
    expected = counts.sum().item() / (taps**2 * counts.numel())
    assert live_fraction(size, taps, stride, padding, dilation) == pytest.approx(expected)


def test_live_fraction_of_deeplab():
    assert live_fraction((33, 33), 3, padding=18, dilation=18) == pytest.approx((63 / 99) ** 2)
    assert live_fraction((33, 33), 1) == 1


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


def test_tf32_is_pytorchs_switch():
    for allowed in (True, False):
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=allowed):
            assert tf32_switch() == allowed


def test_tf32_switch_compiles():
    def f(x):
        return x + 1 if tf32_switch() else x - 1

    with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
        compiled = torch.compile(f, fullgraph=True, backend="eager")
        assert compiled(torch.zeros(1)).item() == 1


@pytest.mark.parametrize(("allowed", "tolerance"), [(False, 2e-6), (True, 2e-3)])
def test_float32_is_rounded_only_where_tf32_is_allowed(device, allowed, tolerance):
    tensors = [torch.randn(1, 64, 9, 9, device=device), torch.randn(32, 64, 3, 3, device=device)]
    wide = [t.double().requires_grad_() for t in tensors]
    for t in tensors:
        t.requires_grad_()
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=allowed):
        y = atrous_conv2d(*tensors, padding=2, dilation=2)
    # The gradients keep to what the forward pass was allowed.
    grads = torch.autograd.grad(y.square().sum(), tensors)
    exact = F.conv2d(*wide, padding=2, dilation=2)
    exact_grads = torch.autograd.grad(exact, wide, 2 * y.detach().double())
    for actual, expected in zip((y, *grads), (exact, *exact_grads), strict=True):
        assert (actual - expected).norm() < tolerance * expected.norm()
