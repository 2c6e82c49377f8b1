"""Devices that atrousx has no kernels for: PyTorch convolves, other operators raise an error."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import atrousx
from atrousx import _library, ops
from atrousx.inference import fused

SERVED = [
    ((8, 6), "8.6"),
    ((8, 9), "8.6"),
    ((8, 9), "8.0 9.0a"),
    ((9, 0), "9.0a"),
    ((9, 0), "8.0 9.0"),
    ((10, 3), "10.0"),
    ((10, 3), "10.0f"),
    ((12, 1), "12.0f+PTX"),
    ((12, 1), "8.0 12.0+PTX"),
    ((13, 0), "8.0 12.0+PTX"),
    ((9, 0), "8.0+PTX"),
    ((8, 7), "8.6+PTX"),
    ((8, 7), "8.7"),
]
REFUSED = [
    ((7, 5), "8.0 8.6"),
    ((8, 0), "8.6"),
    ((9, 0), "8.0 8.6 8.9"),
    ((12, 0), "8.0 9.0a 10.0"),
    ((10, 0), "9.0a"),
    ((10, 3), "10.0a"),
    ((10, 3), "10.0a+PTX"),
    ((12, 0), "9.0a+PTX"),
    ((12, 0), "10.0f+PTX"),
    ((11, 0), "10.0"),
    ((8, 0), "12.0+PTX"),
    ((8, 7), "8.0 8.6"),
    ((8, 9), "8.7"),
    ((8, 0), ""),
]


@pytest.mark.parametrize(("capability", "architectures"), SERVED)
def test_gpus_that_run_what_was_compiled(capability, architectures):
    assert _library.served_by(capability, architectures)


@pytest.mark.parametrize(("capability", "architectures"), REFUSED)
def test_gpus_that_do_not(capability, architectures):
    assert not _library.served_by(capability, architectures)


@pytest.fixture
def gpu(monkeypatch):
    """Simulates a GPU of a capability, and a library compiled for other architectures."""

    def pretend(capability, architectures):
        monkeypatch.setattr(_library, "cuda", SimpleNamespace(architectures=architectures))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA Thing")

    _library._gpu_problem.cache_clear()
    yield pretend
    _library._gpu_problem.cache_clear()


FAKE = FakeTensorMode()


def on(device, *size):
    """Returns a tensor on a device that need not exist."""
    with FAKE:
        return torch.empty(*size, device=device)


def refusals(device):
    """Returns the messages of operators without a twin in PyTorch, by the argument in question."""
    logits, image = on(device, 1, 3, 4, 4), on(device, 1, 3, 4, 4)
    large, target = on(device, 1, 3, 8, 8), on(device, 1, 8, 8).long()
    calls = [
        ("input", lambda: ops.upsample_bilinear2d(logits, (8, 8))),
        ("logits", lambda: ops.upsample_argmax(logits, (8, 8))),
        ("logits", lambda: ops.upsample_cross_entropy(logits, target)),
        ("logits", lambda: ops.upsample_softmax_add_(large, logits)),
        ("values", lambda: ops.permutohedral_filter(logits, image)),
        ("features", lambda: ops.PermutohedralLattice(image)),
        ("logits", lambda: atrousx.DenseCRF(3)(logits, image)),
    ]
    messages = []
    for name, call in calls:
        with pytest.raises(RuntimeError) as error:
            call()
        messages.append(str(error.value))
        assert messages[-1].startswith(f"{name} cannot be on {device}:0: ")
    return messages


@pytest.mark.parametrize("device", ["mps", "xpu"])
def test_other_devices_are_refused_in_a_sentence(device):
    for message in refusals(device):
        assert "kernels for the CPU and for NVIDIA's GPUs; move the tensors there" in message


def test_rocm_is_refused_in_a_sentence(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    for message in refusals("cuda"):
        assert "kernels for the CPU and for NVIDIA's GPUs" in message


def test_a_missing_cuda_library_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setattr(_library, "cuda", None)
    for message in refusals("cuda"):
        assert "install CUDA's compiler nvcc, then atrousx again with ATROUSX_CUDA=1" in message


def test_a_gpu_that_nothing_was_compiled_for_is_named_with_its_remedy(gpu):
    gpu((12, 0), "8.0 9.0a")
    x, w = on("cuda", 1, 4, 8, 8), on("cuda", 4, 4, 3, 3)
    for backend in ("native", "auto"):
        with pytest.raises(RuntimeError) as error:
            ops.atrous_conv2d(x, w, backend=backend)
        assert str(error.value) == (
            "input cannot be on cuda:0: this NVIDIA Thing has compute capability 12.0, and "
            "atrousx was compiled for 8.0 9.0a; install it again with TORCH_CUDA_ARCH_LIST=12.0"
        )
    with pytest.raises(RuntimeError, match=r"TORCH_CUDA_ARCH_LIST=12\.0"):
        ops.multi_rate_conv2d(x, [w], dilations=[1])
    for message in refusals("cuda"):
        assert message.endswith("TORCH_CUDA_ARCH_LIST=12.0")
    with FAKE:
        assert ops.atrous_conv2d(x, w, backend="torch").shape == (1, 4, 6, 6)


def test_a_gpu_that_runs_what_was_compiled_is_asked_once(gpu, monkeypatch):
    gpu((8, 9), "8.0 9.0a")
    tensor = on("cuda", 1)
    assert _library.device_problem(tensor) is None
    monkeypatch.setattr(torch.cuda, "get_device_capability", None)
    assert _library.device_problem(tensor) is None


@pytest.fixture
def auto():
    before = atrousx.get_backend()
    atrousx.set_backend("auto")
    yield
    atrousx.set_backend(before)


@pytest.fixture
def no_kernels(auto, monkeypatch):
    """Treats tensors on the CPU as if atrousx had no kernels for them."""
    for function in (ops.multi_rate_conv2d, ops.atrous_conv2d.__globals__["torch_computes"]):
        monkeypatch.setitem(function.__globals__, "only_torch", lambda _: True)
    for name in ("atrous_conv2d", "multi_rate_conv2d"):
        monkeypatch.setitem(getattr(ops, name).__globals__, "_convolve", None)


def test_convolutions_run_by_pytorch_where_there_are_no_kernels(no_kernels):
    x = torch.randn(2, 4, 9, 11, requires_grad=True)
    weights = [torch.randn(6, 4, 3, 3), torch.randn(6, 4, 1, 1)]
    biases = [torch.randn(6), torch.randn(6)]
    branches = [
        torch.nn.functional.conv2d(x, w, b, padding=2 * (w.shape[2] // 2), dilation=2)
        for w, b in zip(weights, biases, strict=True)
    ]
    one = ops.atrous_conv2d(x, weights[0], biases[0], 1, 2, 2)
    torch.testing.assert_close(one, branches[0], rtol=0, atol=0)
    joined = ops.multi_rate_conv2d(x, weights, biases, (2, 2))
    torch.testing.assert_close(joined, torch.cat(branches, 1), rtol=0, atol=0)
    added = ops.multi_rate_conv2d(x[0], weights, biases, (2, 2), reduce="sum")
    torch.testing.assert_close(added, (branches[0] + branches[1])[0])
    added.sum().backward()
    assert x.grad is not None


@torch.no_grad()
def test_optimized_models_run_by_pytorch_where_there_are_no_kernels(no_kernels, monkeypatch):
    layer = atrousx.AtrousConv2d(4, 6, 3, padding=2, dilation=2)
    net = torch.nn.Sequential(layer, torch.nn.BatchNorm2d(6), torch.nn.ReLU()).eval()
    x = torch.randn(2, 4, 9, 11)
    for model in (net, atrousx.ASPP(4, (2, 3), 6).eval()):
        expected = model(x)
        fast = atrousx.optimize(model)
        for name in ("_fused", "_multi_rate_relu"):
            monkeypatch.setitem(fused.FusedConv2d.forward.__globals__, name, None)
        torch.testing.assert_close(fast(x), expected)


@pytest.mark.parametrize("device", ["mps", "xpu"])
def test_layers_run_on_other_devices(auto, device):
    x, w = on(device, 2, 4, 9, 9), on(device, 6, 4, 3, 3)
    with FAKE:
        assert ops.atrous_conv2d(x, w, padding=2, dilation=2).shape == (2, 6, 9, 9)
        assert ops.multi_rate_conv2d(x, [w, w], dilations=(1, 2)).shape == (2, 12, 9, 9)
    atrousx.set_backend("native")
    for call in (
        lambda: ops.atrous_conv2d(x, w),
        lambda: ops.multi_rate_conv2d(x, [w], dilations=[1]),
    ):
        with pytest.raises(RuntimeError, match=f"input cannot be on {device}:0: "):
            call()
