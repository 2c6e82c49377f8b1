"""3x3 convolutions by Winograd (csrc/atrous_conv2d/cpu/winograd), chosen or requested."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from atrousx.backend.choice import winograd_points
from tests.ops.atrous_conv2d.cases import (
    backward_input_op,
    backward_weight_op,
    forward_op,
    fused_op,
    pack_op,
    points_of,
)
from tests.ops.common import (
    FORMATS,
    assert_as_accurate_as_torch,
    assert_same_bits_with_any_threads,
    multiplies_bfloat16_pairs,
    to_float64,
)
from tests.reference import atrous_conv2d as reference

multi_rate_op = torch.ops.atrousx._multi_rate_conv2d_relu.default

# points, N, C, K, (H, W), padding (top, left, bottom, right), dilation
CASES = {
    "plain, odd": ((4, 4), 2, 20, 37, (7, 9), (1, 1, 1, 1), (1, 1)),
    "dilated, slabs and blocks cut off": ((4, 4), 1, 131, 70, (11, 8), (2, 3, 2, 3), (2, 3)),
    "half vectors": ((4, 4), 1, 9, 42, (5, 6), (1, 1, 1, 1), (1, 1)),
    "more rate than map": ((4, 4), 1, 16, 8, (4, 5), (6, 7, 6, 7), (6, 7)),
    "one pixel": ((4, 4), 3, 9, 24, (1, 1), (1, 1, 1, 1), (1, 1)),
    "unequal padding": ((4, 4), 1, 8, 9, (6, 7), (0, 3, 2, 1), (1, 2)),
    "more channels than a product": ((4, 4), 1, 700, 65, (5, 5), (1, 1, 1, 1), (1, 1)),
    "many tiles": ((4, 4), 2, 33, 21, (40, 31), (4, 4, 4, 4), (4, 4)),
    "pairs": ((3, 3), 2, 131, 70, (9, 7), (5, 4, 5, 4), (5, 4)),
    "pairs alone": ((3, 3), 1, 8, 9, (6, 4), (3, 2, 3, 2), (3, 2)),
    "pairs, one pixel": ((3, 3), 2, 9, 24, (1, 1), (1, 1, 1, 1), (1, 1)),
    "pairs and singles": ((3, 3), 1, 9, 40, (7, 4), (4, 5, 4, 5), (4, 5)),
    "pairs of rows": ((3, 4), 1, 70, 33, (9, 7), (5, 1, 5, 1), (5, 1)),
    "pairs of columns": ((4, 3), 1, 33, 70, (9, 7), (1, 5, 1, 5), (1, 5)),
    "triples": ((5, 5), 2, 131, 70, (9, 8), (3, 3, 3, 3), (3, 3)),
    "triples, pairs and singles": ((5, 5), 1, 9, 40, (7, 4), (3, 3, 3, 3), (3, 3)),
    "triples, half vectors": ((5, 5), 1, 9, 42, (12, 9), (4, 5, 4, 5), (4, 5)),
    "quads": ((7, 7), 2, 131, 70, (16, 15), (4, 4, 4, 4), (4, 4)),
    "quads of three pixels": ((7, 7), 1, 9, 40, (9, 13), (3, 4, 3, 4), (3, 4)),
    "many pairs": ((3, 3), 2, 33, 21, (33, 25), (18, 18, 18, 18), (18, 18)),
}
HALVES = (torch.bfloat16, torch.float16)
# The cases with points (4, 4). In half types their tiles have up to four pixels, of every size.
HALF_CASES = [name for name, case in CASES.items() if case[0] == (4, 4)]
# Large enough that the CPU chooses Winograd: expected points, C, K, (H, W), dilation.
CHOSEN = {
    "tiles": ((4, 4), 70, 130, (30, 31), (2, 2)),
    "pairs": ((3, 3), 70, 130, (33, 32), (18, 17)),
    "triples": ((5, 5), 520, 66, (33, 31), (12, 11)),
    "quads": ((7, 7), 520, 66, (41, 38), (12, 11)),
    "both": ((3, 4), 70, 66, (33, 29), (18, 2)),
    "in steps": ((3, 3), 1000, 64, (33, 33), (18, 18)),
}
HALF_CHOSEN = ((6, 6), 70, 130, (61, 58), (2, 3))
# Only for grad-weight: sums in one part, and sums over several parts and images.
SUMMED = {**CHOSEN, "whole sums": ((4, 4), 450, 512, (12, 13), (2, 2))}


def make(name, memory_format=torch.channels_last, dtype=torch.float32):
    points, batch, channels, outputs, size, sides, dilation = CASES[name]
    x = torch.randn(batch, channels, *size).to(dtype, memory_format=memory_format)
    w, b = torch.randn(outputs, channels, 3, 3).to(dtype), torch.randn(outputs).to(dtype)
    return x, w, b, ((1, 1), sides, dilation, 1), (6, 6) if dtype in HALVES else points


def convolve(x, w, b, geometry, points, residual=None, relu=False):
    packed = pack_op(w, 1, points)
    assert packed.shape[:2] == points
    return fused_op(x, w, b, residual, relu, *geometry, False, packed)


@pytest.mark.parametrize(
    ("points", "rate", "dtype"),
    [
        ((4, 4), 1, torch.float32),
        ((3, 3), 2, torch.float32),
        ((5, 5), 2, torch.float32),
        ((6, 6), 1, torch.bfloat16),
    ],
)
def test_by_hand(points, rate, dtype):
    # Ones everywhere count the live taps, up to a rounding where transforms are not integers.
    x, w = torch.ones(1, 8, 4, 3, dtype=dtype), torch.ones(8, 8, 3, 3, dtype=dtype)
    result = convolve(x, w, None, ((1, 1), (rate,) * 4, (rate, rate), 1), points)
    live = {1: [[4, 6, 4], [6, 9, 6], [6, 9, 6], [4, 6, 4]], 2: [[4, 2, 4]] * 4}
    counted = (result[0, 5].double() / 8).round(decimals=3)
    assert counted.tolist() == live[rate]


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, torch.float32) for name in CASES]
    + [(name, dtype) for name in HALF_CASES for dtype in HALVES],
)
def test_against_oracle_on_cpu(name, dtype, memory_format):
    x, w, b, geometry, points = make(name, memory_format, dtype)
    _, (top, left, bottom, right), dilation, _ = geometry
    result = convolve(x, w, b, geometry, points)
    torch_result = F.conv2d(F.pad(x, (left, right, top, bottom)), w, b, dilation=dilation)
    exact = reference.forward(*map(to_float64, (x, w, b)), *geometry)
    assert_as_accurate_as_torch(result, torch_result, exact)
    assert result.is_contiguous(memory_format=memory_format)


# Returns cases for which the CPU chooses Winograd, with their dtypes.
def chosen(cases):
    return [(case, torch.float32) for case in cases.values()] + [
        (HALF_CHOSEN, dtype) for dtype in HALVES
    ]


def problem(case, memory_format, dtype):
    points, channels, outputs, size, dilation = case
    x = torch.randn(2, channels, *size).relu().to(dtype, memory_format=memory_format)
    w = torch.randn(outputs, channels, 3, 3).to(dtype, memory_format=memory_format)
    grad = torch.randn(2, outputs, *size).to(dtype, memory_format=memory_format)
    geometry = ((1, 1), 2 * dilation, dilation, 1)
    return points, x, w, grad, geometry, (1, dilation, dilation)


def torch_result_and_exact(convolve, *tensors):
    return convolve(*tensors), to_float64(convolve(*(t.double() for t in tensors)))


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(("case", "dtype"), chosen(CHOSEN))
def test_chosen_in_forward_and_grad_input(case, dtype, memory_format):
    points, x, w, grad, geometry, options = problem(case, memory_format, dtype)
    b = torch.randn(len(w)).to(dtype)
    assert tuple(points_of(x.shape, w.shape, *geometry, False, dtype)) == points
    assert_as_accurate_as_torch(
        forward_op(x, w, b, *geometry),
        *torch_result_and_exact(lambda x, w, b: F.conv2d(x, w, b, *options), x, w, b),
    )
    result = backward_input_op(grad, w, x.shape, *geometry)
    assert_as_accurate_as_torch(
        result,
        *torch_result_and_exact(
            lambda grad, w: torch.nn.grad.conv2d_input(x.shape, w, grad, *options), grad, w
        ),
    )
    assert result.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(("case", "dtype"), chosen(SUMMED))
def test_chosen_in_grad_weight(case, dtype, memory_format):
    points, x, w, grad, geometry, options = problem(case, memory_format, dtype)
    assert tuple(points_of(x.shape, w.shape, *geometry, True, dtype)) == points
    result = backward_weight_op(grad, x, w.shape, *geometry)
    assert_as_accurate_as_torch(
        result,
        *torch_result_and_exact(
            lambda grad, x: torch.nn.grad.conv2d_weight(x, w.shape, grad, *options), grad, x
        ),
    )
    assert result.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("name", ["dilated, slabs and blocks cut off", "pairs"])
def test_residual_and_relu(name, memory_format):
    x, w, b, geometry, points = make(name, memory_format)
    plain = convolve(x, w, b, geometry, points)
    residual = torch.randn_like(plain).to(memory_format=memory_format)
    result = convolve(x, w, b, geometry, points, residual, relu=True)
    assert torch.equal(result, (plain + residual).relu())
    assert torch.equal(
        convolve(x, w, None, geometry, points, relu=True),
        convolve(x, w, 0 * b, geometry, points).relu(),
    )


@pytest.mark.parametrize("name", ["many tiles", "one pixel", "many pairs"])
def test_same_bits_with_any_threads(name):
    case = make(name)
    assert_same_bits_with_any_threads(lambda: convolve(*case))


@pytest.mark.parametrize(("case", "dtype"), chosen(CHOSEN))
def test_gradients_have_the_same_bits_with_any_threads(case, dtype):
    _, x, w, grad, geometry, _ = problem(case, torch.contiguous_format, dtype)
    assert_same_bits_with_any_threads(lambda: backward_input_op(grad, w, x.shape, *geometry))
    assert_same_bits_with_any_threads(lambda: backward_weight_op(grad, x, w.shape, *geometry))


def test_empty_batch_and_any_strides():
    x, w, b, geometry, points = make("plain, odd")
    expected = convolve(x, w, b, geometry, points)
    assert convolve(x[:0], w, b, geometry, points).shape == (0, *expected.shape[1:])
    gapped = torch.empty(*x.shape[:-1], 2 * x.shape[-1])[..., ::2].copy_(x)
    turned = w.permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0)
    torch.testing.assert_close(convolve(gapped, turned, b, geometry, points), expected)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_branches_of_several_rates(dtype, memory_format):
    x = torch.randn(2, 20, 13, 9).to(dtype, memory_format=memory_format)
    ws = [torch.randn(17, 20, k, k).to(dtype) for k in (1, 3, 3, 3)]
    half = dtype in HALVES
    packed = [pack_op(w, 1) for w in ws]
    packed[1] = pack_op(ws[1], 1, (6, 6) if half else (4, 4))
    packed[3] = pack_op(ws[3], 1, (6, 6) if half else (3, 3))
    expected = multi_rate_op(x, ws, None, [1, 2, 4, 8], False, False, [])
    result = multi_rate_op(x, ws, None, [1, 2, 4, 8], False, False, packed)
    error = 2 * torch.finfo(dtype).eps if half else 1e-4
    torch.testing.assert_close(result, expected, rtol=error, atol=max(error, 1e-4))


def test_what_cannot_be_transformed():
    for weight, groups in (
        (torch.randn(8, 8, 5, 5), 1),
        (torch.randn(8, 8, 3, 3), 2),
        (torch.randn(8, 8, 3, 3).double(), 1),
    ):
        with pytest.raises(RuntimeError, match="only 3x3 filters in float32 or a half"):
            pack_op(weight, groups, (4, 4))
    with pytest.raises(RuntimeError, match="each 3 or 4, or both 5, or both 7, in float32"):
        pack_op(torch.randn(8, 8, 3, 3), 1, (4, 5))
    with pytest.raises(RuntimeError, match="6 and 6 in a half type"):
        pack_op(torch.randn(8, 8, 3, 3).bfloat16(), 1, (4, 4))
    x, w, b, geometry, points = make("plain, odd")
    strided = ((2, 2), *geometry[1:])
    with pytest.raises(RuntimeError, match="packed is not this weight"):
        convolve(x, w, b, strided, points)
    with pytest.raises(RuntimeError, match="packed for a map of this size"):
        convolve(x, w, b, geometry, (3, 3))
    halves = [t.bfloat16() for t in (x, w, b)]
    with pytest.raises(RuntimeError, match="packed for its dtype"):
        fused_op(*halves, None, False, *geometry, False, pack_op(w, 1, points))
    with pytest.raises(RuntimeError, match="packed is not this weight"):
        fused_op(x, w, b, None, False, *geometry, False, pack_op(w[:, :-1], 1, points))
    torch.library.opcheck(pack_op, (w, 1, points))


def pays(
    size=33,
    rate=2,
    *,
    backend="native",
    channels=64,
    outputs=64,
    frozen=True,
    strides=(1, 1),
    **options,
):
    x = torch.empty(1, channels, size, size, **options)
    w = torch.empty(outputs, channels, 3, 3, **options)
    geometry = (strides, (rate,) * 4, (rate, rate))
    return winograd_points(backend, x, w, *geometry, frozen=frozen)


def test_where_it_pays():
    assert pays() == pays(backend="auto") == (4, 4)
    assert pays(dtype=torch.bfloat16) == pays(dtype=torch.float16) == (6, 6)
    for change in (
        {"backend": "torch"},
        {"strides": (2, 2)},
        {"outputs": 16},
        {"dtype": torch.float64},
        {"device": "meta"},
    ):
        assert pays(**change) == (), change
    # Few pixels per phase need hardly fewer products than live taps. Phases of two use pairs.
    assert pays(65, 12) == (4, 4)
    assert pays(65, 24) == ()
    assert pays(65, 24, channels=256) == (5, 5)
    assert pays(65, 36) == (3, 3)
    # With few pixels it does not pay to transform the filters.
    assert pays(9, 1, frozen=True) == (4, 4)
    assert pays(9, 1, frozen=False) == ()
    # Live taps multiply pairs of bfloat16 twice as fast.
    if multiplies_bfloat16_pairs():
        assert pays(33, dtype=torch.bfloat16, frozen=False) == ()
