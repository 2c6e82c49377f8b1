"""Derivatives by forward mode and torch.func: exact or rejected, for every operator."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.autograd import forward_ad

import atrousx
from tests.ops.operator_cases import (
    all_cases,
    registered_operators,
    tensor_at,
    tensor_places,
    with_tensor,
)

# The arguments in which an operator is linear, separately: their tangents reach the output.
LINEAR = {
    "atrous_conv2d": (0, 1, 2),
    "_measured_conv2d": (0, 1, 2),
    "_atrous_conv2d_backward_input": (0, 1),
    "_atrous_conv2d_backward_weight": (0, 1),
    "multi_rate_conv2d": (0, 1, 2),
    "upsample_bilinear2d": (0,),
    "_upsample_bilinear2d_backward": (0,),
    "_permutohedral_apply": (0,),
}


def places(case, arguments):
    return [p for p in tensor_places(arguments) if tensor_at(arguments, p).is_floating_point()]


CASES = [c for c in all_cases() if places(c, c.arguments())]


def outputs(case, arguments):
    """Returns results that may have a derivative: floating tensors, also those changed in place."""
    op = getattr(torch.ops.atrousx, case.operator).default
    results = op(*arguments)
    if case.operator.endswith("_"):
        results = arguments[0]
    results = results if isinstance(results, (list, tuple)) else [results]
    return [r for r in results if isinstance(r, torch.Tensor) and r.is_floating_point()]


def moved(arguments, directions, step):
    for place, direction in directions.items():
        tensor = tensor_at(arguments, place)
        arguments = with_tensor(arguments, place, tensor + step * direction)
    return arguments


def tangents(case, arguments, directions):
    with forward_ad.dual_level():
        for place, direction in directions.items():
            dual = forward_ad.make_dual(tensor_at(arguments, place), direction)
            arguments = with_tensor(arguments, place, dual)
        found = [forward_ad.unpack_dual(r).tangent for r in outputs(case, arguments)]
        return [None if t is None else t.clone() for t in found]


def direction_at(arguments, place):
    return torch.randn_like(tensor_at(arguments, place))


def double(case):
    return torch.float64 if torch.float64 in case.dtypes else torch.float32


def test_linear_operators_are_registered():
    assert set(LINEAR) <= set(registered_operators())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_tangents_are_exact_or_refused(case):
    torch.manual_seed(0)
    dtype = double(case)
    for place in places(case, case.arguments(dtype=dtype)):
        arguments = case.arguments(dtype=dtype)
        directions = {place: direction_at(arguments, place)}
        if place[0] in LINEAR.get(case.operator, ()):
            (tangent,) = tangents(case, arguments, directions)
            (ahead,) = outputs(case, moved(arguments, directions, 1))
            (behind,) = outputs(case, moved(arguments, directions, -1))
            torch.testing.assert_close(tangent, (ahead - behind) / 2)
        elif outputs(case, case.arguments(dtype=dtype)):
            with pytest.raises(NotImplementedError, match=f"{case.operator} has no forward-mode"):
                tangents(case, arguments, directions)
        else:
            assert tangents(case, arguments, directions) == []


@pytest.mark.parametrize("case", [c for c in CASES if c.operator in LINEAR], ids=str)
def test_tangents_of_several_arguments_add_up(case):
    torch.manual_seed(0)
    arguments = case.arguments(dtype=torch.float64)
    wanted = [p for p in places(case, arguments) if p[0] in LINEAR[case.operator]]
    directions = {place: direction_at(arguments, place) for place in wanted}
    (tangent,) = tangents(case, arguments, directions)
    (ahead,) = outputs(case, moved(arguments, directions, 1))
    (behind,) = outputs(case, moved(arguments, directions, -1))
    torch.testing.assert_close(tangent, (ahead - behind) / 2)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_jvp_says_what_forward_mode_says(case):
    dtype = double(case)
    for place in places(case, case.arguments(dtype=dtype)):
        arguments = case.arguments(dtype=dtype)
        value, direction = tensor_at(arguments, place), direction_at(arguments, place)

        def call(x, arguments=arguments, place=place):
            return (x.sum(), *outputs(case, with_tensor(arguments, place, x)))

        if place[0] in LINEAR.get(case.operator, ()):
            expected = tangents(case, case.arguments(dtype=dtype), {place: direction})
            found = torch.func.jvp(call, (value,), (direction,))[1][1:]
            torch.testing.assert_close(list(found), expected)
        elif outputs(case, case.arguments(dtype=dtype)):
            with pytest.raises(NotImplementedError, match="has no forward-mode"):
                torch.func.jvp(call, (value,), (direction,))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_func_grad_is_right_or_raises(case):
    dtype = double(case)
    for place in places(case, case.arguments(dtype=dtype)):
        arguments = case.arguments(dtype=dtype)
        if not outputs(case, case.arguments(dtype=dtype)):
            continue

        def total(x, arguments=arguments, place=place):
            return sum(r.sum() for r in outputs(case, with_tensor(arguments, place, x)))

        value = tensor_at(arguments, place)
        try:
            found = torch.func.grad(total)(value)
        except RuntimeError:  # includes NotImplementedError
            continue
        leaf = value.clone().requires_grad_()
        torch.testing.assert_close(found, torch.autograd.grad(total(leaf), leaf)[0])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_vmap_is_right_or_raises(case):
    for place in places(case, case.arguments()):
        arguments = case.arguments()
        several = torch.stack([tensor_at(arguments, place)] * 2)

        def call(x, place=place):
            return tuple(outputs(case, with_tensor(case.arguments(), place, x)))

        if not call(several[0]):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # warns that no rule makes it fast
                found = torch.func.vmap(call)(several)
        except RuntimeError:
            continue
        for result, expected in zip(found, call(several[0]), strict=True):
            for part in result:
                torch.testing.assert_close(part, expected)


def random(*size):
    return torch.randn(size, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("inputs", [(random(1, 2, 4, 3), random(2, 2, 3, 3), random(2))])
def test_convolution_in_both_modes(inputs):
    def native(x, w, b):
        return atrousx.ops.atrous_conv2d(x, w, b, padding=2, dilation=2, backend="native")

    torch.autograd.gradcheck(native, inputs, check_forward_ad=True)
    torch.autograd.gradgradcheck(native, inputs, check_fwd_over_rev=True, check_rev_over_rev=True)


def test_upsampling_in_both_modes():
    def resample(x):
        return atrousx.ops.upsample_bilinear2d(x, (5, 7))

    torch.autograd.gradcheck(resample, random(1, 2, 3, 4), check_forward_ad=True)
    torch.autograd.gradgradcheck(resample, random(1, 2, 3, 4), check_fwd_over_rev=True)


def test_pyramid_in_both_modes():
    def pyramid(x, first, second, one, other):
        weights, biases = [first, second], [one, other]
        return atrousx.ops.multi_rate_conv2d(x, weights, biases, (1, 2), reduce="cat")

    weights = [random(2, 2, 3, 3), random(3, 2, 1, 1)]
    inputs = (random(1, 2, 4, 3), *weights, random(2), random(3))
    torch.autograd.gradcheck(pyramid, inputs, check_forward_ad=True)


def test_dense_crf_has_the_tangent_of_its_logits():
    image = torch.randint(256, (1, 3, 4, 5)).double()
    crf = atrousx.DenseCRF(3, iterations=2).double().requires_grad_(False)
    logits, direction = random(1, 3, 4, 5).detach(), random(1, 3, 4, 5).detach()
    q, tangent = torch.func.jvp(lambda x: crf(x, image), (logits,), (direction,))
    torch.testing.assert_close(q, crf(logits, image))
    step = 1e-5
    ahead, behind = (crf(logits + s * step * direction, image) for s in (1, -1))
    torch.testing.assert_close(tangent, (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-8)


def jvp(call, value):
    return torch.func.jvp(call, (value,), (torch.ones_like(value),))


def test_public_functions_refuse_what_they_have_no_tangent_for():
    logits = torch.randn(1, 3, 4, 5)
    target, total = torch.zeros(1, 8, 9, dtype=torch.int64), torch.zeros(1, 3, 8, 9)
    ops = atrousx.ops
    calls = {
        "upsample_argmax": lambda x: ops.upsample_argmax(x, (8, 9), return_probability=True)[1],
        "upsample_cross_entropy": lambda x: ops.upsample_cross_entropy(x, target),
        "upsample_softmax_add_": lambda x: ops.upsample_softmax_add_(total, x),
        "permutohedral_build": lambda x: ops.permutohedral_filter(logits, x),
    }
    for name, call in calls.items():
        with pytest.raises(NotImplementedError, match=f"{name} has no forward-mode"):
            jvp(call, logits)
    labels, tangent = jvp(lambda x: ops.upsample_argmax(x, (8, 9)), logits)
    assert torch.equal(labels, ops.upsample_argmax(logits, (8, 9)))
    assert not tangent.any()
