"""ops.multi_rate_conv2d: literal cases, reference, gradients, contract, rejections."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from atrousx.ops import multi_rate_conv2d
from tests.ops.common import (
    FLOATING,
    FORMATS,
    assert_as_accurate_as_torch,
    assert_same_bits_with_any_threads,
    strided_views,
    to_float64,
)
from tests.optional import given, settings, st
from tests.reference import multi_rate_conv2d as reference

forward_op = torch.ops.atrousx.multi_rate_conv2d.default
relu_op = torch.ops.atrousx._multi_rate_conv2d_relu.default
pack_op = torch.ops.atrousx._atrous_conv2d_pack_weight.default

# N, C, (H, W), then per branch: K, (KH, KW), dilation
CASES = {
    "v3's": (2, 20, (13, 9), [(17, (1, 1), 1), (17, (3, 3), 2), (17, (3, 3), 4), (17, (3, 3), 7)]),
    "v2's": (1, 33, (14, 15), [(21, (3, 3), rate) for rate in (3, 6, 9, 12)]),
    # Whole vectors of channels: tensor cores read weights and the sum of the centres in place.
    "v2's, 24 channels": (1, 24, (9, 8), [(21, (3, 3), rate) for rate in (2, 3, 5)]),
    "more than 32 outputs": (1, 24, (10, 7), [(40, (3, 3), 2), (40, (3, 3), 5), (40, (1, 1), 1)]),
    "64 outputs, odd channels": (2, 17, (6, 9), [(64, (3, 3), 1), (64, (3, 3), 3)]),
    "one branch": (1, 8, (5, 6), [(9, (3, 3), 2)]),
    "pointwise only": (1, 5, (3, 4), [(8, (1, 1), 3), (8, (1, 1), 1)]),
    "kernels of all sizes": (2, 6, (9, 12), [(3, (5, 1), 2), (3, (3, 7), 1), (3, (1, 3), 4)]),
}

# Not in float64: in such long sums a float64 reference has as much rounding error as the result.
LONG = {
    "66 outputs of two pixels": (1, 16, (1, 2), [(66, (1, 3), 1)]),
    "rates beyond a map": (1, 16, (4, 5), [(17, (3, 3), rate) for rate in (1, 3, 8)]),
    "columns of taps": (1, 19, (3, 2), [(17, (3, 1), 2), (17, (5, 3), 1), (17, (1, 1), 1)]),
    # More channels than the stages in flight hold, and a full tile of pixels.
    "136 channels": (3, 136, (1, 50), [(16, (1, 3), 1), (16, (1, 3), 40)]),
    # Too many taps for CUDA to add the branches in one launch.
    "21 taps": (1, 16, (2, 31), [(16, (1, 21), 1), (16, (1, 3), 2)]),
}


def make(name, dtype, device, memory_format=torch.contiguous_format):
    batch, channels, size, branches = (CASES | LONG)[name]
    options = {"dtype": dtype, "device": device}
    x = torch.randn(batch, channels, *size, **options).to(memory_format=memory_format)
    ws = [torch.randn(k, channels, *taps, **options) for k, taps, _ in branches]
    bs = [torch.randn(k, **options) for k, _, _ in branches]
    return x, ws, bs, [rate for *_, rate in branches]


def separately(x, ws, bs, rates, reduce):
    """Computes the same with PyTorch's convolution, one branch after another."""
    bs = [None] * len(ws) if bs is None else bs
    branches = [
        F.conv2d(x, w, b, 1, [rate * (taps // 2) for taps in w.shape[2:]], rate)
        for w, b, rate in zip(ws, bs, rates, strict=True)
    ]
    return torch.cat(branches, -3) if reduce == "cat" else sum(branches[1:], branches[0])


def test_by_hand(device):
    row = torch.tensor([[[[1.0, 2.0, 3.0]]]], device=device)
    ws = [torch.tensor([[[w]]], device=device) for w in ([1.0, 10, 100], [4.0, 5, 6], [1000.0])]
    bs = [torch.tensor([b], device=device) for b in (0.5, 0.25, 0.125)]
    result = multi_rate_conv2d(row, ws, bs, (1, 2, 9))
    assert result.tolist() == [
        [[[210.5, 321.5, 32.5]], [[23.25, 10.25, 19.25]], [[1000.125, 2000.125, 3000.125]]]
    ]
    result = multi_rate_conv2d(row, ws, bs, (1, 2, 9), reduce="sum")
    assert result.tolist() == [[[[1233.875, 2331.875, 3051.875]]]]


def test_padding_is_never_multiplied(device):
    ws = [torch.full((1, 1, 3, 3), torch.inf, device=device) for _ in range(2)]
    for w in ws:
        w[0, 0, 1, 1] = 3
    x = torch.ones(1, 1, 2, 2, device=device)
    assert (multi_rate_conv2d(x, ws, None, (2, 5)) == 3).all()
    assert (multi_rate_conv2d(x, ws, None, (2, 5), reduce="sum") == 6).all()


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("reduce", ["cat", "sum"])
@pytest.mark.parametrize("name", CASES)
def test_against_oracle(device, name, reduce, memory_format, dtype):
    check_against_oracle(name, reduce, memory_format, dtype, device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("reduce", ["cat", "sum"])
@pytest.mark.parametrize("name", LONG)
@pytest.mark.slow
def test_long_sums_against_oracle(device, name, reduce, memory_format, dtype):
    check_against_oracle(name, reduce, memory_format, dtype, device)


def check_against_oracle(name, reduce, memory_format, dtype, device):
    x, ws, bs, rates = make(name, dtype, device, memory_format)
    leaves = [t.requires_grad_() for t in (x, *ws, *bs)]
    actual = multi_rate_conv2d(x, ws, bs, rates, reduce=reduce)
    torch_result = separately(x, ws, bs, rates, reduce)
    exact = reference.forward(
        to_float64(x), [*map(to_float64, ws)], [*map(to_float64, bs)], rates, reduce
    )
    assert_as_accurate_as_torch(actual, torch_result, exact)
    assert actual.is_contiguous(memory_format=memory_format)

    grad = torch.randn_like(actual)
    exact_grads = reference.backward(
        to_float64(grad), to_float64(x), [*map(to_float64, ws)], rates, reduce
    )
    actual_grads = torch.autograd.grad(actual, leaves, grad)
    torch_grads = torch.autograd.grad(torch_result, leaves, grad)
    for actual_grad, torch_grad, exact_grad in zip(
        actual_grads, torch_grads, exact_grads, strict=True
    ):
        assert_as_accurate_as_torch(actual_grad, torch_grad, exact_grad)


@pytest.mark.parametrize("name", ["v2's", "v2's, 24 channels", "more than 32 outputs", "v3's"])
@pytest.mark.parametrize("reduce", ["cat", "sum"])
@pytest.mark.parametrize(("allowed", "tolerance"), [(False, 2e-6), (True, 2e-3)])
def test_float32_is_rounded_only_where_tf32_is_allowed(device, name, reduce, allowed, tolerance):
    x, ws, bs, rates = make(name, torch.float32, device)
    leaves = [t.requires_grad_() for t in (x, *ws)]
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=allowed):
        y = multi_rate_conv2d(x, ws, bs, rates, reduce=reduce)
    wide = [t.detach().double().requires_grad_() for t in leaves]
    exact = separately(wide[0], wide[1:], [b.double() for b in bs], rates, reduce)
    grad = torch.randn_like(y)
    grads = torch.autograd.grad(y, leaves, grad)
    exact_grads = torch.autograd.grad(exact, wide, grad.double())
    for actual, expected in zip((y, *grads), (exact, *exact_grads), strict=True):
        assert (actual - expected).norm() < tolerance * expected.norm()


@st.composite
def problems(draw):
    channels, outputs = draw(st.integers(1, 12)), draw(st.integers(1, 36))
    branches = draw(st.integers(1, 4))
    size = [draw(st.integers(1, 12)) for _ in range(2)]
    x = torch.randn(draw(st.integers(0, 3)), channels, *size, dtype=torch.float64)
    ws = []
    for _ in range(branches):
        taps = [draw(st.sampled_from([1, 3, 3, 5, 7])) for _ in range(2)]
        w = torch.randn(outputs, channels, *taps, dtype=torch.float64)
        ws.append(w.to(memory_format=draw(st.sampled_from(FORMATS))))
    rates = [draw(st.integers(1, 8)) for _ in range(branches)]
    return x.to(memory_format=draw(st.sampled_from(FORMATS))), ws, rates


@given(problem=problems(), reduce=st.sampled_from(["cat", "sum"]))
@settings(deadline=None, max_examples=60)
def test_any_geometry(problem, reduce):
    x, ws, rates = problem
    actual, expected = (
        f(x, ws, None, rates, reduce=reduce) for f in (multi_rate_conv2d, separately)
    )
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("reduce", ["cat", "sum"])
def test_gradcheck(device, reduce):
    x, ws, bs, rates = make("kernels of all sizes", torch.float64, device)
    leaves = [t.requires_grad_() for t in (x[:1, :2], *(w[:, :2] for w in ws), *bs)]

    def convolve(x, *rest):
        return multi_rate_conv2d(x, rest[:3], rest[3:], rates, reduce=reduce)

    assert torch.autograd.gradcheck(convolve, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(convolve, leaves, fast_mode=True)


def test_only_the_gradients_asked_for(device):
    x, ws, _, rates = make("v3's", torch.float64, device)
    ws[2].requires_grad_()
    multi_rate_conv2d(x, ws, None, rates).sum().backward()
    assert ws[2].grad is not None
    assert x.grad is None
    assert ws[1].grad is None


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("adds", [False, True])
def test_opcheck(device, adds, memory_format):
    x, ws, bs, rates = make("v2's", torch.float32, device, memory_format)
    bias = sum(bs) if adds else torch.cat(bs)
    leaves = [t.requires_grad_() for t in (x, *ws, bias.detach())]
    torch.library.opcheck(forward_op, (leaves[0], leaves[1:-1], leaves[-1], rates, adds, False))
    x, *ws, bias = (t.detach() for t in leaves)
    torch.library.opcheck(relu_op, (x, ws, bias, rates, adds, False, []))
    torch.library.opcheck(forward_op, (x[:0], ws, None, rates, adds, False))
    expected = forward_op(x, ws, bias, rates, adds, False).relu()
    assert torch.equal(relu_op(x, ws, bias, rates, adds, False, []), expected)


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("name", ["v2's, 24 channels", "more than 32 outputs", "columns of taps"])
def test_relu(device, name, adds, dtype):
    x, ws, bs, rates = make(name, dtype, device)
    bias = sum(bs) if adds else torch.cat(bs)
    expected = forward_op(x, ws, bias, rates, adds, False).relu()
    assert torch.equal(relu_op(x, ws, bias, rates, adds, False, []), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_weights(dtype):
    x, ws, _, rates = make("v3's", dtype, "cpu")
    packed = [pack_op(w, 1) for w in ws]
    expected = relu_op(x, ws, None, rates, False, False, [])
    assert torch.equal(relu_op(x, ws, None, rates, False, False, packed), expected)
    with pytest.raises(RuntimeError, match="packed"):
        relu_op(x, ws, None, rates, False, False, packed[1:])


@pytest.mark.parametrize("reduce", ["cat", "sum"])
def test_any_strides(device, reduce):
    x, ws, bs, rates = make("v2's", torch.float64, device)
    expected = separately(x, ws, bs, rates, reduce)
    for a, *rest in zip(strided_views(x), *map(strided_views, ws), strict=True):
        torch.testing.assert_close(multi_rate_conv2d(a, rest, bs, rates, reduce=reduce), expected)
    broadcast = x.expand(3, -1, -1, -1)
    result = multi_rate_conv2d(broadcast, ws, [b[::1] for b in bs], rates, reduce=reduce)
    torch.testing.assert_close(result[2:], expected)


def test_unbatched_and_empty_batch(device):
    x, ws, bs, rates = make("v3's", torch.float64, device)
    result = multi_rate_conv2d(x[0], ws, bs, rates, reduce="sum")
    torch.testing.assert_close(result, separately(x[0], ws, bs, rates, "sum"))
    empty, w = x[:0].clone().requires_grad_(), ws[1].clone().requires_grad_()
    result = multi_rate_conv2d(empty, [w, w], None, (1, 2))
    assert result.shape == (0, 34, 13, 9)
    result.sum().backward()
    assert empty.grad.shape == empty.shape
    assert torch.equal(w.grad, torch.zeros_like(w))


@pytest.mark.parametrize("reduce", ["cat", "sum"])
def test_deterministic(reduce):
    x = torch.randn(1, 40, 33, 31, requires_grad=True)
    ws = [torch.randn(70, 40, 3, 3, requires_grad=True) for _ in range(3)]

    def run():
        return multi_rate_conv2d(x, ws, None, reduce=reduce)

    grad = torch.randn_like(run())
    assert_same_bits_with_any_threads(run)
    for leaf in (x, ws[1]):
        assert_same_bits_with_any_threads(
            lambda leaf=leaf: torch.autograd.grad(run(), leaf, grad)[0]
        )


def test_autocast_computes_in_lower_precision(device):
    x, ws, bs, rates = make("v2's", torch.float32, device)
    x.requires_grad_()
    with torch.autocast(device.type, torch.bfloat16):
        result = multi_rate_conv2d(x, [ws[0].bfloat16(), *ws[1:]], bs, rates, reduce="sum")
        assert result.dtype == torch.bfloat16
    result.float().sum().backward()
    assert x.grad.dtype == torch.float32


def test_compile_and_export(device):
    ws = [torch.randn(9, 3, k, k, device=device, requires_grad=True) for k in (1, 3)]

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = torch.nn.ParameterList(ws)

        def forward(self, x):
            return multi_rate_conv2d(x, list(self.weights), None, (1, 4)).relu()

    module = Module()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    for height in (8, 11):
        x = torch.randn(1, 3, height, 7, device=device)
        torch.testing.assert_close(compiled(x), module(x))
        actual = torch.autograd.grad(compiled(x).square().sum(), list(module.weights))
        expected = torch.autograd.grad(module(x).square().sum(), list(module.weights))
        torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(torch.export.export(module, (x,)).module()(x), module(x))


X, W = torch.ones(1, 4, 5, 5), torch.ones(6, 4, 3, 3)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"input": [1.0]}, TypeError, "input must be a torch.Tensor, got list"),
        ({"input": X[0, 0]}, ValueError, r"\[N, C, H, W\] or 3 \[C, H, W\].*\(5, 5\)"),
        ({"input": X[:, :, :0]}, ValueError, "input must have a non-empty H and W"),
        ({"input": X[:, :3]}, ValueError, r"weights\[0\].*needs an input of 4 channels"),
        ({"weights": W}, TypeError, "weights must be a list of tensors, got Tensor"),
        ({"weights": None}, TypeError, "weights must be a list of tensors, got NoneType"),
        ({"weights": [W, None]}, TypeError, r"weights\[1\] must be a torch.Tensor"),
        ({"weights": [W, W[0]]}, ValueError, r"weights\[1\] must have 4 dimensions"),
        ({"weights": [W, W.double()]}, RuntimeError, r"weights\[1\] must have the dtype of input"),
        ({"weights": [W]}, ValueError, "weight for each dilation.*got 1 weights and 2 dilations"),
        ({"weights": [], "dilations": ()}, ValueError, "weight for each dilation, at least one"),
        ({"weights": [W, W[..., :2]]}, ValueError, r"weights\[1\].*odd KH and KW"),
        ({"weights": [W, W[:0]]}, ValueError, r"weights\[1\] must have a non-empty K"),
        ({"weights": [W, W[:2]], "reduce": "sum"}, ValueError, r"to be summed, got \[6, 2\]"),
        ({"biases": [torch.ones(6)]}, ValueError, "biases must be 2, one per weight, got 1"),
        ({"biases": [torch.ones(6), torch.ones(5)]}, ValueError, r"biases\[1\] must have shape"),
        ({"biases": torch.ones(6)}, TypeError, "biases must be a list of tensors"),
        ({"dilations": 3}, TypeError, "dilations must be a list of ints, got 3"),
        ({"dilations": (1, 2.0)}, TypeError, "dilations must be a list of ints"),
        ({"dilations": (1, 0)}, ValueError, r"dilations must be positive, got \[1, 0\]"),
        ({"reduce": "mean"}, ValueError, "reduce must be 'cat' or 'sum', got 'mean'"),
    ],
)
def test_rejects(kwargs, error, message):
    arguments = {"input": X, "weights": [W, W], "biases": None, "dilations": (1, 2), **kwargs}
    with pytest.raises(error, match=message):
        multi_rate_conv2d(**arguments)


@pytest.mark.parametrize(
    "change",
    [
        {1: []},
        {1: [W, W[:, :3]]},
        {1: [W, W[..., :2]]},
        {1: [W, W.double()]},
        {2: torch.ones(11)},
        {3: [1]},
        {3: [1, 0]},
        {1: [W, W[:2]], 4: True},
    ],
)
def test_direct_calls_are_guarded(change):
    arguments = [X, [W, W], None, [1, 2], False]
    for index, value in change.items():
        arguments[index] = value
    with pytest.raises((RuntimeError, ValueError)):
        forward_op(*arguments, False)
