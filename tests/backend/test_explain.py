"""What explain reports of a layer: which implementation computes each pass, how, and why."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

import atrousx
from atrousx import explain
from atrousx.backend import measure as measuring
from atrousx.backend.choice import winograd_points
from atrousx.backend.geometry import PASSES
from atrousx.inference.fused import FusedConv2d
from atrousx.ops import atrous_conv2d

WIDE = (256, 256, 3, 3)
TALL = (1, 256, 33, 33)
ROWS = {"groups": 64, "channels_last": True}


def by(explanation):
    return [p.computed_by for p in explanation.passes]


def methods(explanation):
    return [p.algorithm for p in explanation.passes]


def test_the_numbers_of_a_layer_that_can_be_counted_by_hand():
    found = explain((2, 1, 3, 1), (1, 1, 5, 4), padding=(2, 0), dilation=2, backend="native")
    # Rows of 5 and taps at -2, 0, 2: 3 + 5 + 3 of 15 taps are live.
    assert found.live_share == pytest.approx(11 / 15)
    assert found.output_size == (1, 2, 5, 4)
    assert found.multiply_adds == 2 * 5 * 4 * 3
    assert found.live_multiply_adds == 2 * 4 * 11
    assert found.bytes_moved == 4 * (5 * 4 + 2 * 3 + 2 * 5 * 4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.multiply_adds = 0


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_a_backend_by_name_is_the_reason(backend):
    found = explain(WIDE, TALL, backend=backend)
    assert by(found) == [{"native": "atrousx", "torch": "PyTorch"}[backend]] * 3
    assert all(backend in p.reason for p in found.passes)
    atrousx.set_backend(backend)
    assert explain(WIDE, TALL) == found


@pytest.mark.parametrize(
    ("weight", "input", "options", "expected"),
    [
        (WIDE, TALL, {"padding": 1}, ["minimal filtering"] * 3),
        (WIDE, TALL, {"padding": 18, "dilation": 18}, ["minimal filtering"] * 3),
        (WIDE, TALL, {"padding": 1, "dtype": torch.float64}, ["dense product"] * 3),
        (WIDE, TALL, {"padding": 1, "stride": 2}, ["dense product"] * 3),
        ((256, 256, 1, 1), TALL, {}, ["dense product"] * 3),
        ((64, 1, 3, 3), (1, 64, 9, 9), {"groups": 64}, ["depthwise"] * 3),
        ((64, 1, 3, 3), (1, 64, 9, 9), ROWS, ["depthwise rows"] * 2 + ["depthwise"]),
        ((64, 1, 3, 3), (1, 64, 9, 9), {**ROWS, "stride": 2}, ["depthwise"] * 3),
        ((64, 1, 5, 5), (1, 64, 9, 9), ROWS, ["depthwise"] * 3),
        ((8, 2, 3, 3), (1, 8, 9, 9), {"groups": 4}, ["direct"] * 3),
        # With few channels and many outputs only the gradient of the input has few destinations.
        ((64, 3, 7, 7), (1, 3, 33, 33), {}, ["dense product", "direct", "dense product"]),
    ],
)
def test_algorithms_of_the_cpu(weight, input, options, expected):
    found = explain(weight, input, backend="native", **options)
    if "minimal filtering" not in expected or found.passes[0].points:
        assert methods(found) == expected


def test_the_points_are_the_operators_own():
    found = explain(WIDE, TALL, padding=1, backend="native")
    x, w = torch.empty(TALL), torch.empty(WIDE)
    geometry = ((1, 1), (1, 1, 1, 1), (1, 1))
    points = winograd_points("native", x, w, *geometry, frozen=False)
    assert found.passes[0].points == points
    assert ("points" in str(found)) is bool(points)


def test_auto_on_the_cpu_goes_by_its_rule():
    for dilation, trains in ((1, True), (18, False), (2, True)):
        x = torch.empty(1, 4, 33, 33)
        w = torch.full((64, 4, 3, 3), torch.inf, requires_grad=trains)
        y = atrous_conv2d(torch.ones_like(x), w, None, 1, dilation, dilation, backend="auto")
        expected = "PyTorch" if y.isnan().any() else "atrousx"
        found = explain(
            (64, 4, 3, 3), x, padding=dilation, dilation=dilation, backend="auto", trains=trains
        )
        assert by(found) == [expected] * 3
        assert "rule" in found.passes[0].reason


def test_measured_times_are_given_and_undecided_is_said(clock):
    x, w = torch.randn(2, 8, 9, 9, requires_grad=True), torch.randn(8, 8, 3, 3, requires_grad=True)
    size = {"padding": 2, "dilation": 2, "backend": "measure"}
    assert by(explain(w.shape, x, **size)) == ["undecided"] * 3
    assert not list(measuring.table)
    clock.update(native=0.5, torch=1.0)
    atrous_conv2d(x, w, None, 1, 2, 2, backend="measure").sum().backward()
    found = explain(w.shape, x, **size)
    assert by(found)[0] == "atrousx"
    assert found.passes[0].native_seconds == 0.5
    assert "measured: atrousx 500 ms, PyTorch 1e+03 ms" in found.passes[0].reason
    # The gradient of a sum is expanded and has no memory format; explain assumes the output's.
    for geometry, choice in list(measuring.table):
        measuring.keep(geometry, choice._replace(native=False, agrees=False, error=0.25))
    found = explain(w.shape, x, **size)
    assert by(found)[0] == "PyTorch"
    assert "wrong here, by 0.25" in found.passes[0].reason


def test_it_finds_what_a_step_of_training_has_measured(clock):
    layer = atrousx.AtrousConv2d(8, 6, 3, padding=2, dilation=2)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 8, 9, 9).to(memory_format=memory_format).requires_grad_()
        atrousx.set_backend("measure")
        y = layer(x)
        y.backward(torch.ones_like(y))
        assert by(explain(layer, x)) == ["atrousx"] * 3


def test_a_layer_by_any_of_its_inputs():
    layer = torch.nn.Conv2d(8, 6, 3, padding="same", dilation=2, groups=2)
    found = explain(layer, torch.empty(1, 8, 9, 7))
    assert explain(layer, (9, 7)) == explain(layer, (1, 8, 9, 7)) == found
    assert explain(layer, torch.empty(8, 9, 7)) == found
    assert found.output_size == (1, 6, 9, 7)
    assert found.layer.startswith("3x3 convolution, 8 to 6 channels, groups 2")


def test_a_layer_of_an_optimized_model_has_its_filters_packed():
    layer = FusedConv2d.make(torch.nn.Conv2d(64, 64, 3, padding=1))
    packed, plain = explain(layer, (9, 9)), explain((64, 64, 3, 3), (1, 64, 9, 9), padding=1)
    assert packed.passes[0].algorithm == "minimal filtering" or not packed.passes[0].points
    assert plain.passes[0].algorithm == "dense product"


def test_it_prints_as_a_table():
    lines = str(explain(WIDE, TALL, padding=18, dilation=18, backend="torch")).splitlines()
    assert lines[0].startswith("3x3 convolution, 256 to 256 channels")
    assert "40.5% of the multiply-adds touch data: 0.26 of 0.642 billion in a pass" in lines[1]
    assert [line.split()[0] for line in lines[3:]] == list(PASSES)
    assert len({line.index("PyTorch ") for line in lines[3:]}) == 1


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        (((3, 3), (9, 9)), {}, ValueError, "layer must be 4 positive ints"),
        ((WIDE, (1, 256, 0, 9)), {}, ValueError, "input must be 4 positive ints"),
        ((WIDE, (1, 8, 9, 9)), {}, ValueError, "does not fit an input"),
        ((WIDE, (2, 2)), {}, ValueError, "the output would be empty"),
        ((WIDE, TALL), {"dtype": torch.int32}, TypeError, "dtype must be"),
        ((WIDE, TALL), {"size": 3}, TypeError, "explain has no option 'size'"),
        ((WIDE, torch.empty(TALL)), {"dtype": torch.half}, TypeError, "dtype must not be given"),
        ((torch.nn.Conv2d(2, 2, 3), (9, 9)), {"stride": 2}, TypeError, "stride must not be given"),
        (
            (torch.nn.Upsample(2), (9, 9)),
            {},
            TypeError,
            "got Upsample; only convolutions are chosen",
        ),
        ((WIDE, TALL), {"backend": "gpu"}, ValueError, "backend must be"),
        ((WIDE, TALL), {"dilation": 0}, ValueError, "dilation must be positive"),
    ],
)
def test_rejects(arguments, options, error, words):
    with pytest.raises(error, match=words):
        explain(*arguments, **options)


def test_seconds_are_none_where_nothing_was_measured():
    found = explain(WIDE, TALL, backend="native")
    assert {p.native_seconds for p in found.passes} == {None}
    assert math.isfinite(found.live_share)
