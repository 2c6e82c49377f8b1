"""Cases in which nothing is measured, and proof that measuring disturbs nothing."""

from __future__ import annotations

import threading

import pytest
import torch
import torch.nn.functional as F

import atrousx
from atrousx.backend import measure as measuring
from atrousx.backend.geometry import FORWARD, PASSES
from atrousx.ops import atrous_conv2d
from tests.backend.common import choices, convolve, operands, step


@pytest.fixture(autouse=True)
def _measure():
    atrousx.set_backend("measure")


def test_deterministic_mode_measures_nothing(clock, used):
    x, w, b = operands()
    torch.use_deterministic_algorithms(True)
    try:
        step(x, w, b)
        assert used == []
        assert not choices()
        torch.use_deterministic_algorithms(False)
        clock.update(native=9.0)
        step(x, w, b)
        used.clear()
        step(x, w, b)
        assert used == []
        # In deterministic mode every kernel that agreed may run, even if it is slower.
        torch.use_deterministic_algorithms(True)
        step(x, w, b)
        assert used == list(PASSES)
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_captured_call_measures_nothing_and_decides_nothing(monkeypatch, clock, used):
    x, w, b = operands()
    with monkeypatch.context() as patched:
        patched.setattr(measuring, "is_capturing", lambda device: True)
        step(x, w, b)
        assert used == []
        assert not choices()
    step(x, w, b)
    assert choices().keys() == set(PASSES)
    used.clear()
    monkeypatch.setattr(measuring, "is_capturing", lambda device: True)
    step(x, w, b)
    assert used == list(PASSES)


def test_compiled_code_runs_what_was_chosen_before(clock):
    def traced(x, w):
        graphs = []

        def keep(graph, _):
            names = [str(n.target) for n in graph.graph.nodes if "conv" in str(n.target)]
            graphs.extend(names)
            return graph.forward

        from functorch.compile import make_boxed_func
        from torch._dynamo.backends.common import aot_autograd

        torch._dynamo.reset()
        backend = aot_autograd(fw_compiler=lambda g, i: make_boxed_func(keep(g, i)))
        torch.compile(convolve, backend=backend, fullgraph=True)(x, w).square().sum().backward()
        return graphs

    x, w, _ = operands()
    by_torch = ["aten.convolution.default", "aten.convolution_backward.default"]
    assert traced(x, w) == by_torch
    assert not choices()
    step(x, w)
    native = ["", "_backward_input", "_backward_weight"]
    assert traced(x, w) == [
        f"atrousx.{'_' if name else ''}atrous_conv2d{name}.default" for name in native
    ]
    assert len(choices()) == len(PASSES)


def test_what_was_found_faster_runs_under_capture_and_tracing_too(monkeypatch, clock, used):
    x, w, _ = (t.detach() for t in operands())
    clock.update(native=9.0)
    convolve(x, w)
    used.clear()
    torch._dynamo.reset()
    torch.compile(convolve, backend="aot_eager", fullgraph=True)(x, w)
    monkeypatch.setattr(measuring, "is_capturing", lambda device: True)
    convolve(x, w)
    assert used == []
    for _, choice in measuring.table:
        assert choice.agrees


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_export_measures_nothing(clock):
    class Model(torch.nn.Module):
        def forward(self, x, w):
            return convolve(x, w)

    x, w, _ = (t.detach() for t in operands())
    targets = []
    for _ in range(2):
        program = torch.export.export(Model(), (x, w)).run_decompositions()
        targets += [str(n.target) for n in program.graph.nodes if "conv" in str(n.target)]
        convolve(x, w)
    assert targets == ["aten.convolution.default", "atrousx.atrous_conv2d.default"]


def test_functional_transforms_and_traces_take_pytorchs(clock, used):
    x, w, _ = (t.detach() for t in operands())
    convolve(x, w)
    used.clear()
    torch.func.grad(lambda x: convolve(x, w).sum())(x)
    torch.func.vmap(lambda x: convolve(x, w))(x[None])
    _, tangent = torch.func.jvp(lambda x: convolve(x, w), (x,), (x,))
    torch.testing.assert_close(tangent, convolve(x, w), rtol=1e-4, atol=1e-4)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x)
        tangent = torch.autograd.forward_ad.unpack_dual(convolve(dual, w)).tangent
    torch.testing.assert_close(tangent, convolve(x, w), rtol=1e-4, atol=1e-4)
    assert used == [FORWARD] * 2


def test_a_dispatch_mode_sees_no_trial(clock):
    class Mode(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            calls.append(str(function))
            return function(*args, **(kwargs or {}))

    calls = []
    x, w, _ = (t.detach() for t in operands())
    with Mode():
        convolve(x, w)
    assert calls == ["aten.convolution.default"]


def test_a_trial_disturbs_nothing(clock):
    x, w, b = operands()
    kept = [t.detach().clone() for t in (x, w, b)]
    state, versions = torch.get_rng_state(), [t._version for t in (x, w, b)]
    with torch.inference_mode():
        convolve(x, w, b)
    measuring.forget()
    step(x, w, b)
    assert torch.equal(torch.get_rng_state(), state)
    assert [t._version for t in (x, w, b)] == versions
    for tensor, before in zip((x, w, b), kept, strict=True):
        assert torch.equal(tensor, before)
    assert x.grad is None


def test_autocast_measures_its_own_dtype(clock):
    x, w, b = operands()
    with torch.autocast("cpu", torch.bfloat16):
        y = convolve(x, w, b)
        expected = F.conv2d(x, w, b, padding=2, dilation=2, groups=2)
    assert y.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected, rtol=2e-2, atol=2e-2)
    gradients = torch.autograd.grad(y.float().sum(), (x, w, b))
    assert [g.dtype for g in gradients] == [torch.float32] * 3
    assert {g.dtype for g, _ in measuring.table} == {"bfloat16"}


def test_threads_at_once_measure_once(clock, used):
    x, w, _ = (t.detach() for t in operands())
    expected = F.conv2d(x, w, padding=2, dilation=2, groups=2)
    results, start = [], threading.Barrier(4)

    def work():
        start.wait()
        results.append(convolve(x, w))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert used == [FORWARD] * 5  # one trial, four calls
    for result in results:
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


def test_empty_batches_and_no_channels_measure_nothing(clock):
    w = torch.randn(6, 2, 3, 3, requires_grad=True)
    y = convolve(torch.randn(0, 4, 9, 9), w)
    assert y.shape == (0, 6, 9, 9)
    y.sum().backward()
    assert w.grad.eq(0).all()
    bias = torch.ones(9)
    assert atrous_conv2d(torch.empty(1, 0, 5, 5), torch.empty(9, 0, 3, 3), bias).eq(1).all()
    assert not choices()
