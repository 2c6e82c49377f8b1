"""ops.atrous_conv2d's contract with PyTorch: opcheck, samples, autocast, tracing, rejections."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_map

from atrousx.backend.choice import tf32_switch
from atrousx.doctor.devices import device_named
from atrousx.ops import atrous_conv2d
from tests.ops.atrous_conv2d.cases import backward_input_op, backward_weight_op, forward_op, make
from tests.ops.common import FORMATS, assert_as_accurate_as_torch, to_float64


def _conv2d_info():
    pytest.importorskip("expecttest")  # PyTorch's test database imports it
    from torch.testing._internal.common_methods_invocations import op_db

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
        input, args, kwargs = tree_map(
            lambda value: value.double() if isinstance(value, torch.Tensor) else value,
            (sample.input, sample.args, sample.kwargs),
        )
        exact = F.conv2d(input, *args, **kwargs)
        if dtype == torch.float64:
            # PyTorch's own result is no measure of its error.
            torch.testing.assert_close(actual, exact, rtol=1e-12, atol=1e-12)
        else:
            assert_as_accurate_as_torch(actual, expected, to_float64(exact))
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
        actual = torch.autograd.grad(compiled(x).square().sum(), w)
        torch.testing.assert_close(actual, torch.autograd.grad(convolve(x).square().sum(), w))

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


# C, K, groups, (H, W), (KH, KW), stride, padding, dilation: maps that tensor cores read in place
# and maps that are packed first (C % 4 is not 0), few and many channels and outputs, every pass.
TF32 = {
    "64 channels": (64, 32, 1, (9, 9), (3, 3), 1, 2, 2),
    "odd channels, 21 outputs": (37, 21, 1, (7, 11), (3, 3), 1, 4, 4),
    "72 outputs, strided": (20, 72, 1, (15, 13), (3, 2), (2, 1), (1, 3), (1, 3)),
    "pointwise": (128, 65, 1, (9, 15), (1, 1), 1, 0, 1),
    "7x7": (16, 24, 1, (9, 10), (7, 7), 1, 6, 2),
    "groups": (48, 40, 2, (8, 9), (3, 3), 1, 1, 1),
    "stem": (3, 64, 1, (17, 15), (7, 7), 2, 3, 1),
    "one channel": (1, 9, 1, (12, 9), (3, 5), 1, 2, 1),
    "one output": (30, 1, 1, (9, 8), (3, 3), 1, 2, 2),
    "groups of few channels": (12, 9, 3, (9, 8), (3, 3), 1, 2, 2),
    "too narrow": (8, 12, 4, (7, 6), (3, 3), 1, 1, 1),
}


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("name", TF32)
@pytest.mark.parametrize(("allowed", "tolerance"), [(False, 2e-6), (True, 2e-3)])
def test_float32_is_rounded_only_where_tf32_is_allowed(
    device, allowed, tolerance, name, memory_format
):
    channels, outputs, groups, size, taps, *options = TF32[name]
    tensors = [
        torch.randn(2, channels, *size, device=device).to(memory_format=memory_format),
        torch.randn(outputs, channels // groups, *taps, device=device),
    ]
    wide = [t.double().requires_grad_() for t in tensors]
    for t in tensors:
        t.requires_grad_()
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=allowed):
        y = atrous_conv2d(*tensors, None, *options, groups)
    # The gradients use the setting of the forward pass.
    grads = torch.autograd.grad(y.square().sum(), tensors)
    exact = F.conv2d(*wide, None, *options, groups)
    exact_grads = torch.autograd.grad(exact, wide, 2 * y.detach().double())
    for actual, expected in zip((y, *grads), (exact, *exact_grads), strict=True):
        assert (actual - expected).norm() < tolerance * expected.norm()


@pytest.mark.parametrize(
    ("dtype", "tf32", "algorithm"),
    [
        (torch.bfloat16, False, 4),
        (torch.float32, True, 4),
        (torch.float32, False, 0),
        (torch.float64, True, 0),
    ],
)
def test_a_stem_runs_on_tensor_cores_where_the_dtype_has_them(device, dtype, tf32, algorithm):
    if device.type == "cpu":
        pytest.skip("the CPU has none")
    like = torch.empty(1, dtype=dtype, device=device)
    geometry = ([16, 3, 513, 513], [64, 3, 7, 7], [2, 2], [3, 3, 3, 3], [1, 1], 1)
    for number in (0, 2):
        op = torch.ops.atrousx._atrous_conv2d_algorithm.default
        assert op(like, number, *geometry, False, False, tf32) == [algorithm]


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.slow
def test_so_many_pixels_that_tiles_are_wide(device, dtype, memory_format):
    # Forward and grad-input on tensor cores take 128 outputs at a time if there are more than 64
    # outputs and at least 4 tiles of 128 pixels per multiprocessor.
    pixels = 4 * 128 * max(1, device_named(str(device)).multiprocessors)
    x = torch.randn(1, 72, 16, pixels // 16 + 1, device=device).to(dtype)
    w = torch.randn(72, 72, 1, 2, device=device).to(dtype) / 12
    x = x.to(memory_format=memory_format)
    grad = torch.randn(1, 72, 16, pixels // 16 + 4, device=device).to(dtype)
    results = []
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=dtype == torch.float32):
        for convolve, kind in ((atrous_conv2d, dtype), (F.conv2d, dtype), (F.conv2d, torch.double)):
            leaves = [t.to(kind).requires_grad_() for t in (x, w)]
            y = convolve(*leaves, None, 1, (0, 3), (1, 3))
            results.append((y, *torch.autograd.grad(y, leaves, grad.to(kind))))
    for actual, torch_result, exact in zip(*results, strict=True):
        if dtype == torch.float32:
            assert (actual - exact).norm() < 2e-3 * exact.norm()
        else:
            assert_as_accurate_as_torch(actual, torch_result, to_float64(exact))
