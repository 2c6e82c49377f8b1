"""Operators without a twin in PyTorch check themselves on a GPU before their first result."""

from __future__ import annotations

import warnings

import pytest
import torch

import atrousx
from atrousx.backend import self_check
from atrousx.ops import _self_checks

NAMES = sorted(self_check._checks)


@pytest.fixture(autouse=True)
def _anew():
    self_check.forget()
    yield
    self_check.forget()


@pytest.fixture
def gpu(monkeypatch):
    """Treats the CPU as a GPU: results are compared with themselves."""
    monkeypatch.setattr(self_check, "is_gpu", lambda tensor: True)


def call(name, dtype=torch.float32):
    given = self_check._checks[name].inputs()
    inputs = [t.to(dtype) if t.is_floating_point() else t for t in given]
    return self_check._checks[name].case(*inputs)


def test_all_of_them_have_a_check():
    assert NAMES == [
        "mean_field",
        "multi_rate_conv2d",
        "permutohedral_filter",
        "upsample_argmax",
        "upsample_bilinear2d",
        "upsample_cross_entropy",
        "upsample_softmax_add_",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_checked_on_the_cpu(name):
    call(name)
    assert not self_check._found


@pytest.mark.parametrize("name", NAMES)
def test_each_checks_itself_once_for_a_dtype(gpu, monkeypatch, name):
    checked = []
    right = self_check._difference

    def counted(check, dtype, device):
        checked.append(dtype)
        return right(check, dtype, device)

    monkeypatch.setattr(self_check, "_difference", counted)
    for dtype in (torch.float32, torch.float64, torch.float32):
        call(name, dtype)
    found = {(key[0], key[1]) for key in self_check._found}
    assert {(name, torch.float32), (name, torch.float64)} <= found
    assert len(checked) == len(set(self_check._found))
    assert not any(self_check._found.values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", [n for n in NAMES if n != "mean_field"])
def test_half_types(gpu, name, dtype):
    call(name, dtype)
    assert not any(self_check._found.values())


def wrong_on_the_device(monkeypatch, name, fault):
    """Applies the fault to the check's first result, the device's; the second is the CPU's."""
    check, calls = self_check._checks[name], []

    def case(*inputs):
        results = check.case(*inputs)
        calls.append(results)
        return fault(results) if len(calls) == 1 else results

    monkeypatch.setitem(self_check._checks, name, check._replace(case=case))
    return calls


class _Doubled(torch.autograd.Function):
    """A function with a correct result and a wrong gradient."""

    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


def first(change):
    return lambda results: (change(results[0]), *results[1:])


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_one_raises_at_every_call(gpu, monkeypatch, name):
    calls = wrong_on_the_device(monkeypatch, name, first(lambda t: t + 1))
    for _ in range(3):
        with pytest.raises(
            RuntimeError, match=f"{name} is wrong on cpu in float32.*Compute on the CPU"
        ):
            _self_checks_call(name)
    assert len(calls) == 2
    _self_checks_call(name, torch.float64)


def _self_checks_call(name, dtype=torch.float32):
    """Calls the operator as a user does, not the patched case."""
    given = [t.to(dtype) if t.is_floating_point() else t for t in self_check._checks[name].inputs()]
    case = {
        "mean_field": _self_checks._mean_field,
        "multi_rate_conv2d": _self_checks._multi_rate,
        "permutohedral_filter": _self_checks._filter,
        "upsample_argmax": _self_checks._argmax,
        "upsample_bilinear2d": _self_checks._upsample,
        "upsample_cross_entropy": _self_checks._cross_entropy,
        "upsample_softmax_add_": _self_checks._softmax_add,
    }[name]
    return case(*given)


@pytest.mark.parametrize("fault", [lambda t: t * torch.nan, lambda t: t[..., 1:], _Doubled.apply])
def test_faults_of_other_kinds(gpu, monkeypatch, fault):
    wrong_on_the_device(monkeypatch, "permutohedral_filter", first(fault))
    with pytest.raises(RuntimeError, match="is wrong on"):
        _self_checks_call("permutohedral_filter")


def test_the_crf_does_not_run_on_a_wrong_filter(gpu, monkeypatch):
    wrong_on_the_device(monkeypatch, "permutohedral_filter", first(lambda t: t + 1))
    crf = atrousx.DenseCRF(3, iterations=1)
    with pytest.raises(RuntimeError, match="permutohedral_filter is wrong"):
        crf(torch.randn(1, 3, 5, 5), 255 * torch.rand(1, 3, 5, 5))


def test_it_can_be_switched_off(gpu, monkeypatch):
    wrong_on_the_device(monkeypatch, "upsample_argmax", first(lambda t: t + 1))
    monkeypatch.setenv("ATROUSX_SELF_CHECK", "0")
    _self_checks_call("upsample_argmax")


def test_a_check_disturbs_nothing(gpu):
    logits = torch.randn(1, 3, 4, 4)
    state = torch.get_rng_state()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), warnings.catch_warnings():
        warnings.simplefilter("error")
        atrousx.ops.upsample_argmax(logits, 9)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(self_check._found.values())


def test_compiled_code_is_checked_when_it_is_traced(gpu, monkeypatch):
    def labels(logits):
        return atrousx.ops.upsample_argmax(logits, 9)

    torch._dynamo.reset()
    compiled = torch.compile(labels, fullgraph=True, backend="aot_eager")
    logits = torch.randn(1, 3, 4, 4)
    assert torch.equal(compiled(logits), labels(logits))
    assert list(self_check._found.values()) == [None]
    self_check.forget()
    wrong_on_the_device(monkeypatch, "upsample_argmax", first(lambda t: t + 1))
    torch._dynamo.reset()
    with pytest.raises(Exception, match="upsample_argmax is wrong"):
        torch.compile(labels, fullgraph=True, backend="aot_eager")(logits)
