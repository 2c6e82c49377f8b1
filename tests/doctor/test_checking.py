"""The doctor's cases cover the schema and pass here, and each kind of wrong result is detected."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from atrousx import _library
from atrousx.doctor import devices, speed
from atrousx.doctor.accuracy import allowed_error, error_of, worst
from atrousx.doctor.cases import cases, operators
from atrousx.doctor.cases.case import ALL, PLAIN, placed, rounded
from atrousx.doctor.checking import OK, WRONG, References, planned, run_check
from atrousx.doctor.devices import Device, device_named
from atrousx.doctor.layers import Layer

CPU = device_named("cpu")
GPU = Device("cuda:0", ALL, 132)


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("device", [CPU, GPU], ids=lambda device: device.name)
def test_every_operator_of_the_schema_has_a_case(device, quick):
    about_cpus = {
        "_atrous_conv2d_suits_filters",
        "_fingerprint",
        "_set_highest_precision",
    }
    wanted = set(operators()) - (about_cpus if device is GPU else set())
    assert wanted <= {case.operator for case in cases(device, quick)}


def test_operators_with_a_gradient_are_checked_for_it():
    differentiable = {case.operator for case in cases(CPU) if case.pass_name == "gradients"}
    public = {name for name in operators() if not name.startswith("_")}
    assert public | {"permutohedral_filter", "DenseCRF", "_mean_field"} <= differentiable


def test_dtypes_are_those_of_the_device():
    assert {check.dtype for _, check in planned(cases(CPU), CPU)} == set(PLAIN)
    plan = planned(cases(GPU), GPU)
    assert {check.dtype for _, check in plan} == set(ALL)
    assert len({dataclasses.astuple(check)[:5] for _, check in plan}) == len(plan)


def test_gpus_are_examined_where_there_are_kernels_for_them(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(_library, "cuda", object())
    assert devices.found() == ["cpu", "cuda:0", "cuda:1"]
    monkeypatch.setattr(_library, "cuda", None)
    assert devices.found() == ["cpu"]
    with pytest.raises(ValueError, match="built without its CUDA kernels, which cuda:1 needs"):
        device_named("cuda:1")


def test_wide_tiles_are_reached_on_every_gpu():
    for count in (80, 132, 192):
        (case,) = (
            c
            for c in cases(Device("cuda:0", ALL, count))
            if "wide tile" in c.name and (c.operator, c.pass_name) == ("atrous_conv2d", "forward")
        )
        x, w, *_ = case.make()
        assert x.shape[2] * x.shape[3] // 128 >= 4 * count
        assert min(w.shape[:2]) > 64


def test_the_first_case_of_each_operator_is_right_here():
    # `atrousx doctor` runs all cases.
    first = {(c.operator, c.pass_name): c for c in reversed(cases(CPU, quick=True))}
    references = References()
    for case, check in planned(list(first.values()), CPU):
        if check.layout == "contiguous":
            found = run_check(case, check, CPU, references)
            assert found.status == OK, found


@pytest.mark.parametrize("name", ["atrous_conv2d", "_permutohedral_pack", "_upsample_argmax"])
def test_rounded_values_are_held_exactly(name):
    tensors = cases(CPU, True, [name])[0].make()
    for dtype in PLAIN:
        for tensor in (rounded(t, dtype) for t in tensors):
            for layout in ("contiguous", "channels_last", "strided"):
                there = placed(tensor, dtype, layout, torch.device("cpu"))
                assert torch.equal(there.to(tensor.dtype), tensor)
    view = placed(torch.randn(1, 2, 3, 4).double(), "float32", "strided", torch.device("cpu"))
    assert view.stride(-1) == 2


def changed(case, change):
    """Returns the case with a change to every first result, except float64's."""

    def run(tensors, tf32):
        results = case.run(tensors, tf32)
        exact = results[0].dtype in (torch.float64, torch.int64)
        return results if exact else (change(results[0]), *results[1:])

    return dataclasses.replace(case, run=run)


def with_nan(result):
    result.view(-1)[-1] = math.nan
    return result


def crash(result):
    raise RuntimeError("an illegal address\nand more")


calls = iter(range(1000))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: 1.01 * y, "error"),
        (with_nan, "error nan"),
        (lambda y: y[..., 1:], "error inf"),
        (lambda y: torch.empty(y.shape), "error nan"),
        (lambda y: y * (1 + 1e-7 * next(calls)), "two runs of it differ"),
        (crash, "RuntimeError: an illegal address"),
    ],
    ids=["off by a percent", "NaN", "shape", "never written", "differs", "crash"],
)
def test_what_is_wrong_is_said(change, message):
    case = next(c for c in cases(CPU, True, ["atrous_conv2d"]) if c.pass_name == "forward")
    for original, status in ((changed(case, change), WRONG), (case, OK)):
        plan = [pair for pair in planned([original], CPU) if pair[1].dtype == "float32"]
        found = run_check(*plan[0], CPU, References())
        assert found.status == status
        assert found.message.startswith(message if status == WRONG else "")


def test_the_cpus_float64_is_held_against_pytorch():
    case = next(c for c in cases(CPU, True, ["atrous_conv2d"]) if c.pass_name == "forward")
    wrong = dataclasses.replace(case, run=lambda t, tf32: (1.001 * case.run(t, tf32)[0],))
    found = {
        check.dtype: run_check(wrong, check, CPU, References()).status
        for _, check in planned([wrong], CPU)
    }
    assert found["float64"] == WRONG


def test_accuracy_rule():
    exact = torch.tensor([3.0, 4.0]).double()
    assert error_of(torch.tensor([3.0, 4.5]), exact) == 0.5
    assert math.isnan(error_of(torch.tensor([3.0, math.nan]), exact))
    assert error_of(torch.tensor([1, 2, 3]), torch.tensor([1, 5, 6])) == 2
    assert allowed_error("float32", 9, torch.tensor([1, 2]), None) == 0
    # Twice PyTorch's error, but at least two roundings. If PyTorch fails, its error does not count.
    assert allowed_error("float32", 9, exact, 0.1) == 0.2
    assert allowed_error("float32", 9, exact, 0.0) == pytest.approx(10 * 2.0**-23)
    for failed in (None, math.nan, math.inf):
        assert allowed_error("float32", 98, exact, failed) == pytest.approx(500 * 2.0**-23)
    assert allowed_error("bfloat16", 98, exact, None) == pytest.approx(5 * (2**-6 + 98 * 2**-23))
    assert worst([(1, 2), (3, 4), (math.nan, 9), (8, 9)])[1] == 9
    assert worst([(0.0, 0.0), (1.0, 0.0), (5.0, 1.0)]) == (1.0, 0.0)
    assert worst([]) == (0.0, 0.0)


def test_what_is_timed_computes_the_same():
    device = torch.device("cpu")
    layer = Layer("small", 8, 9, 3, 2, 7)
    for make in (
        lambda: speed._convolution(layer, device, "float32", 2, False),
        lambda: speed._convolution(layer, device, "float32", 2, True),
        lambda: speed._upsample(device, "float32", 1),
        lambda: speed._loss(device, "float32", 1),
        lambda: speed._crf(device, (16, 20)),
    ):
        both = make()
        found, expected = (both[name]() for name in ("atrousx", "torch"))
        for a, b in zip(
            *(x if isinstance(x, tuple) else (x,) for x in (found, expected)), strict=True
        ):
            torch.testing.assert_close(a.flatten(), b.flatten(), rtol=1e-4, atol=1e-4)


def test_timing_stops_when_the_time_is_up():
    lines = list(speed.timings(CPU, 0.0))
    assert {line.message for line in lines} == {"the time was up"}
    assert {line.status for line in lines} == {"not run"}
    assert len({line.line for line in lines}) == 15
    assert len(list(speed._lines(GPU))) > len(lines)
    assert speed.Timing("a", "forward", "float32", 1, 2.0, 1.8).status == "slower"
    assert speed.Timing("a", "forward", "float32", 1, 2.0, 1.95).status == "ok"
