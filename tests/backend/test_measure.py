"""The backend "measure": both computed, compared, timed, and the faster one kept, pass by pass."""

from __future__ import annotations

import threading
import warnings

import pytest
import torch
import torch.nn.functional as F

import atrousx
from atrousx.backend import measure as measuring
from atrousx.backend import passes
from atrousx.backend.geometry import FORWARD, FUSED, GRAD_INPUT, GRAD_WEIGHT
from atrousx.backend.table import FEW
from atrousx.nn.fused import FusedConv2d
from atrousx.ops import atrous_conv2d

PASSES = (FORWARD, GRAD_INPUT, GRAD_WEIGHT)


@pytest.fixture(autouse=True)
def _measure():
    atrousx.set_backend("measure")


@pytest.fixture
def used(monkeypatch):
    """The native passes that run, in order, trials included."""
    names = []

    def seen(name, function):
        def call(*args):
            names.append(name)
            return function(*args)

        return call

    for pass_, name in (
        (FORWARD, "convolve_natively"),
        (GRAD_INPUT, "gradient_of_input"),
        (GRAD_WEIGHT, "gradient_of_weight"),
    ):
        wrapped = seen(pass_, getattr(passes, name))
        monkeypatch.setattr(passes, name, wrapped)
        monkeypatch.setattr(f"atrousx.ops._measured_conv2d.{name}", wrapped)
    return names


def operands(size=9, dtype=torch.float32, channels=4):
    x = torch.randn(2, channels, size, size, dtype=dtype, requires_grad=True)
    w = torch.randn(6, channels // 2, 3, 3, dtype=dtype, requires_grad=True)
    b = torch.randn(6, dtype=dtype, requires_grad=True)
    return x, w, b


def convolve(x, w, b=None, **options):
    return atrous_conv2d(x, w, b, padding=2, dilation=2, groups=2, **options)


def choices():
    return {geometry.pass_: choice for geometry, choice in measuring.table}


def step(x, w, b=None):
    y = convolve(x, w, b)
    return (y, *torch.autograd.grad(y.square().sum(), [t for t in (x, w, b) if t is not None]))


def plant(monkeypatch, pass_, fault=lambda result: result + 1):
    """A kernel that is wrong, of one pass."""
    name = {
        FORWARD: "_forward",
        FUSED: "_fused",
        GRAD_INPUT: "_backward_input",
        GRAD_WEIGHT: "_backward_weight",
    }[pass_]
    right = getattr(passes, name)
    monkeypatch.setattr(passes, name, lambda *args: fault(right(*args)))


def test_each_pass_is_chosen_apart(clock, used):
    """By a clock that says something else for each."""
    for faster_native in (FORWARD, GRAD_INPUT, GRAD_WEIGHT):
        measuring.forget()
        x, w, b = operands()
        clock.update(native=2.0)
        step(x, w, b)
        for geometry, choice in list(measuring.table):
            assert not choice.native
            measuring.keep(geometry, choice._replace(native=geometry.pass_ == faster_native))
        used.clear()
        results = step(x, w, b)
        assert used == [faster_native]
        expected = F.conv2d(x, w, b, padding=2, dilation=2, groups=2)
        gradients = torch.autograd.grad(expected.square().sum(), (x, w, b))
        for result, right in zip(results, (expected, *gradients), strict=True):
            torch.testing.assert_close(result, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("native", "expected"), [(1.0, True), (1.04, True), (1.06, False), (0.5, True), (9.0, False)]
)
def test_pytorch_must_win_by_five_percent(clock, native, expected):
    clock.update(native=native)
    step(*operands())
    assert {pass_: choice.native for pass_, choice in choices().items()} == dict.fromkeys(
        PASSES, expected
    )


def test_a_layer_that_is_pytorchs_throughout_has_its_autograd(clock, used):
    clock.update(native=9.0)
    x, w, b = operands()
    nodes = [convolve(x, w, b).grad_fn.name()]
    for input in (x.detach(), x):
        for _ in range(2):
            convolve(input, w, b).sum().backward()
        nodes.append(convolve(x, w, b).grad_fn.name())
        nodes.append(convolve(x.detach(), w, b).grad_fn.name())
    own, torchs = "_MeasuredBackward", "ConvolutionBackward0"
    # Of the weight alone at first: what the input's gradient takes is not known.
    assert nodes == [own, own, torchs, torchs, torchs]
    used.clear()
    expected = F.conv2d(x, w, b, padding=2, dilation=2, groups=2)
    torch.testing.assert_close(convolve(x, w, b), expected)
    assert used == []


def test_a_geometry_is_tried_once(clock, used):
    x, w, b = operands()
    step(x, w, b)
    used.clear()
    for _ in range(3):
        step(x.detach().clone().requires_grad_(), w, b)
    assert used == list(PASSES) * 3


@pytest.mark.parametrize("pass_", PASSES)
def test_a_wrong_kernel_is_never_used_and_warned_of_once(monkeypatch, clock, used, pass_):
    plant(monkeypatch, pass_)
    x, w, b = operands()
    with pytest.warns(RuntimeWarning, match=rf"differ by .*: {pass_} of a 3x3 .*, float32, cpu"):
        step(x, w, b)
    used.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results = step(x, w, b)
    assert used == [other for other in PASSES if other != pass_]
    assert choices()[pass_].agrees is False
    expected = F.conv2d(x, w, b, padding=2, dilation=2, groups=2)
    gradients = torch.autograd.grad(expected.square().sum(), (x, w, b))
    for result, right in zip(results, (expected, *gradients), strict=True):
        torch.testing.assert_close(result, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "fault",
    [
        lambda result: result.index_fill(-1, torch.tensor([0]), 0.0),  # a column not written
        lambda result: torch.full_like(result, torch.nan),
        lambda result: result[..., :-1],
        lambda result: result * 1.001,
    ],
)
def test_faults_of_many_kinds_are_seen(monkeypatch, clock, fault):
    plant(monkeypatch, FORWARD, fault)
    x, w, b = operands()
    with pytest.warns(RuntimeWarning, match="differ by"):
        y = convolve(x, w, b)
    torch.testing.assert_close(y, F.conv2d(x, w, b, padding=2, dilation=2, groups=2))


def test_a_kernel_that_fails_is_not_used(monkeypatch, clock):
    def fail(result):
        raise RuntimeError("too many resources requested for launch")

    plant(monkeypatch, GRAD_INPUT, fail)
    with pytest.warns(RuntimeWarning, match="kernels failed .too many resources"):
        step(*operands())
    assert choices()[GRAD_INPUT].agrees is False


def test_zeros_and_infinities_do_not_hide_a_wrong_kernel(monkeypatch, clock):
    plant(monkeypatch, FORWARD, lambda result: result * 2)
    for value in (0.0, torch.inf, torch.nan):
        measuring.forget()
        x = torch.full((1, 4, 9, 9), value)
        with pytest.warns(RuntimeWarning, match="differ by"):
            convolve(x, torch.ones(6, 2, 3, 3))


def test_memory_that_runs_out_means_pytorch(monkeypatch, clock):
    def fail(result):
        raise torch.OutOfMemoryError("out of memory")

    plant(monkeypatch, FORWARD, fail)
    x, w, b = (t.detach() for t in operands())
    torch.testing.assert_close(
        convolve(x, w, b), F.conv2d(x, w, b, padding=2, dilation=2, groups=2)
    )
    assert choices()[FORWARD].source == "no memory"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_right_kernels_agree_in_every_dtype(clock, dtype, memory_format):
    for channels, groups in ((32, 1), (32, 4), (8, 8)):
        x = torch.randn(2, channels, 17, 17, dtype=dtype).to(memory_format=memory_format)
        w = torch.randn(channels, channels // groups, 3, 3, dtype=dtype, requires_grad=True)
        y = atrous_conv2d(x.requires_grad_(), w, None, 1, 3, 3, groups)
        y.backward(torch.ones_like(y))
    assert len(list(measuring.table)) == 9
    assert all(choice.agrees for _, choice in measuring.table)


def test_the_nearest_measured_size_decides_after_a_few(clock, used):
    clock.update(native=2.0)
    sizes = [8, 16, 32, 64]
    assert len(sizes) == FEW
    w = torch.randn(6, 2, 3, 3)
    for size in sizes:
        clock.update(native=0.5 if size >= 32 else 2.0)
        convolve(torch.randn(1, 4, size, size), w)
    used.clear()
    for size, expected in ((9, []), (20, []), (24, [FORWARD]), (70, [FORWARD]), (5, [])):
        convolve(torch.randn(1, 4, size, size), w)
        assert used == expected, size
        used.clear()
    assert len(list(measuring.table)) == FEW
    # A batch counts as so many more pixels; another layer is measured by itself.
    convolve(torch.randn(16, 4, 8, 8), w)
    assert used == [FORWARD]
    convolve(torch.randn(1, 4, 9, 9), torch.randn(8, 2, 3, 3))
    assert len(list(measuring.table)) == FEW + 1


def test_a_kernel_wrong_at_one_size_is_used_at_no_size_that_was_not_compared(monkeypatch, clock):
    w = torch.randn(6, 2, 3, 3)
    for size in (8, 16, 32):
        convolve(torch.randn(1, 4, size, size), w)
    with monkeypatch.context() as patched:
        plant(patched, FORWARD)
        with pytest.warns(RuntimeWarning):
            convolve(torch.randn(1, 4, 64, 64), w)
    x = torch.full((1, 4, 9, 9), 1.0)
    result = convolve(x, torch.full_like(w, torch.inf))
    assert result.isnan().any()  # PyTorch's multiplies padding


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
        # What was right runs there, whoever is faster.
        torch.use_deterministic_algorithms(True)
        step(x, w, b)
        assert used == list(PASSES)
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_captured_call_measures_nothing_and_decides_nothing(monkeypatch, clock, used):
    x, w, b = operands()
    with monkeypatch.context() as patched:
        patched.setattr(measuring, "_captured", lambda like: True)
        step(x, w, b)
        assert used == []
        assert not choices()
    step(x, w, b)
    assert choices().keys() == set(PASSES)
    used.clear()
    monkeypatch.setattr(measuring, "_captured", lambda like: True)
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
        torch.compile(convolve, backend=backend, fullgraph=True)(x, w).sum().backward()
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


@pytest.mark.parametrize("native", [PASSES, (), (FORWARD,), (GRAD_INPUT,), (GRAD_WEIGHT,)])
def test_gradients_are_exact_to_the_second_order_whoever_computes(clock, native):
    wide = {"dtype": torch.float64, "requires_grad": True}
    x, w = torch.randn(1, 4, 3, 4, **wide), torch.randn(2, 2, 2, 2, **wide)
    b = torch.randn(2, **wide)

    def function(x, w, b):
        return atrous_conv2d(x, w, b, stride=(1, 2), padding=(1, 2), dilation=(2, 1), groups=2)

    def same(x, w, b):  # the odd pixel below and to the right
        return atrous_conv2d(x, w, b, padding="same", dilation=(1, 3), groups=2)

    for f in (function, same):
        f(x, w, b).sum().backward()
        for geometry, choice in list(measuring.table):
            measuring.keep(geometry, choice._replace(native=geometry.pass_ in native))
        assert torch.autograd.gradcheck(f, (x, w, b), fast_mode=True)
        assert torch.autograd.gradgradcheck(f, (x, w, b), fast_mode=True)


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


def test_an_image_without_a_batch(clock):
    x, w, b = operands()
    torch.testing.assert_close(convolve(x[0], w, b), convolve(x, w, b)[0])


def test_auto_measures_where_there_are_no_limits(monkeypatch, clock):
    atrousx.set_backend("auto")
    x, w, b = operands()
    step(x, w, b)
    assert not choices()
    monkeypatch.setattr("atrousx.backend.choice._HAS_LIMITS", False)
    step(x, w, b)
    assert choices().keys() == set(PASSES)


@pytest.mark.parametrize("residual", [False, True])
def test_an_optimized_layer_is_measured_as_a_whole(monkeypatch, clock, residual):
    conv = torch.nn.Conv2d(8, 16, 3, padding=2, dilation=2)
    layer = FusedConv2d.make(conv, relu=True)
    x, added = torch.randn(1, 8, 9, 9), torch.randn(1, 16, 9, 9) if residual else None
    expected = (conv(x) + (added if residual else 0)).relu()
    with torch.no_grad():
        torch.testing.assert_close(layer(x, added), expected, rtol=1e-4, atol=1e-4)
        assert choices().keys() == {FUSED}
        measuring.forget()
        plant(monkeypatch, FUSED)
        with pytest.warns(RuntimeWarning, match="fused forward with .*relu of a 3x3"):
            result = layer(x, added)
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
        assert choices()[FUSED].agrees is False


def test_both_are_timed_in_turn_and_the_least_counts(monkeypatch):
    from atrousx.backend import trial

    order, times = [], iter([9.0, 1.0, 2.0, 3.0, 4.0, 0.5])
    monkeypatch.setattr(
        trial, "seconds_of", lambda call, like: (order.append(call), next(times))[1]
    )
    monkeypatch.setattr(trial, "_CLEAR", 100.0)
    assert trial.faster("a", "b", torch.empty(0)) == (2.0, 0.5)
    assert order == ["a", "b"] * 3


def test_a_long_call_that_is_clearly_slower_is_timed_once(monkeypatch):
    from atrousx.backend import trial

    times = iter([1.0, 3.0])
    monkeypatch.setattr(trial, "seconds_of", lambda call, like: next(times))
    assert trial.faster("a", "b", torch.empty(0)) == (1.0, 3.0)
