"""When two results of a convolution agree, and which one is right if they do not."""

from __future__ import annotations

import pytest
import torch

from atrousx.backend.accuracy import allowed_error, compare, difference
from atrousx.backend.geometry import FORWARD, GRAD_INPUT, GRAD_WEIGHT, Geometry, Options

OPTIONS = Options((1, 1), (2, 2, 2, 2), (2, 2), 2, False)


def geometry(pass_=FORWARD, dtype="float32", tf32=False):
    sizes = ((3, 64, 9, 7), (32, 32, 3, 3))
    options = OPTIONS._replace(allow_tf32=tf32)
    return Geometry(pass_, "cpu", dtype, *sizes, options, (False, False))


def never():
    raise AssertionError("float64 is not to be asked")


def test_how_many_products_are_summed():
    assert geometry(FORWARD).terms == 32 * 9
    assert geometry(GRAD_INPUT).terms == 16 * 9
    assert geometry(GRAD_WEIGHT).terms == 3 * 9 * 7


def test_rounding_is_allowed_as_the_type_and_the_sum_have_it():
    narrow = [allowed_error(geometry(dtype=name)) for name in ("float64", "float32", "float16")]
    assert narrow == sorted(narrow)
    assert allowed_error(geometry()) < 1e-5
    assert allowed_error(geometry(tf32=True)) == pytest.approx(2**-9, rel=0.01)
    assert 2**-7 < allowed_error(geometry(dtype="bfloat16")) < 2**-6


@pytest.mark.parametrize(
    ("error", "agrees"), [(0, True), (1e-7, True), (1e-3, False), (torch.nan, False)]
)
def test_float64_is_asked_only_where_two_results_differ(error, agrees):
    right = torch.randn(3, 32, 9, 7)
    verdict = compare(right * (1 + error), right, geometry(), never if agrees else right.double)
    assert verdict.agrees is agrees


def test_one_wrong_element_is_enough():
    right = torch.randn(64, 64, 9, 9)
    wrong = right.clone()
    wrong[0, 0, 0, 0] += 0.1
    assert not compare(wrong, right, geometry(), right.double).agrees


def test_where_pytorch_is_less_exact_the_other_one_is_right():
    exact = torch.randn(3, 32, 9, 7, dtype=torch.float64)
    rough = (exact * (1 + 1e-3 * torch.randn_like(exact))).float()
    assert compare(exact.float(), rough, geometry(), lambda: exact).agrees
    # At most twice PyTorch's error is allowed.
    for factor, agrees in ((1.9, True), (2.2, False)):
        other = (exact + factor * (rough.double() - exact)).float()
        assert compare(other, rough, geometry(), lambda: exact).agrees is agrees


def test_without_a_result_of_pytorchs_float64_judges():
    exact = torch.randn(3, 32, 9, 7, dtype=torch.float64)
    assert compare(exact.float(), None, geometry(), lambda: exact).agrees
    assert not compare(exact.float() * 1.01, None, geometry(), lambda: exact).agrees


def test_differences_of_zeros_shapes_and_nothing():
    zeros, ones = torch.zeros(3), torch.ones(3)
    assert difference(zeros, zeros) == (0, 0)
    assert difference(ones, zeros) == (torch.inf, torch.inf)
    assert difference(zeros, ones) == (1, 1)
    assert difference(ones, torch.ones(4)) == (torch.inf, torch.inf)
    assert difference(torch.empty(0), torch.empty(0)) == (0, 0)
    assert difference(ones, ones * torch.inf) == (torch.inf, torch.inf)
