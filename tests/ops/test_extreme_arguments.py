"""Numbers far beyond those of any network: each operator raises an error or is right."""

from __future__ import annotations

import resource
import time

import numpy as np
import pytest
import torch

import atrousx
from atrousx.nn import DenseCRF
from atrousx.ops import (
    atrous_conv2d,
    live_fraction,
    multi_rate_conv2d,
    upsample_argmax,
    upsample_bilinear2d,
    upsample_cross_entropy,
)
from tests.ops.atrous_conv2d.cases import (
    backward_input_op,
    backward_weight_op,
    forward_op,
    fused_op,
    pack_op,
    points_of,
)
from tests.ops.common import to_float64
from tests.optional import given, settings, st
from tests.reference import atrous_conv2d as reference

LARGEST = 2**31 - 1
EXTREMES = [0, 1, 2, 3, 7, LARGEST, 2**31, 2**32, 2**62, 2**63 - 1]
TOO_LARGE = [2**31, 2**32, 2**62, 2**63 - 1]
operators = torch.ops.atrousx

x = torch.ones(1, 2, 5, 5)
w = torch.ones(2, 1, 3, 3)
wide = torch.ones(2, 1, 5, 5)


@pytest.mark.parametrize("number", [*TOO_LARGE, 2**70, np.int64(2**62)])
@pytest.mark.parametrize("name", ["stride", "padding", "dilation"])
@pytest.mark.parametrize("axis", [0, 1])
def test_steps_beyond_the_limit_are_named(name, number, axis):
    values = [1, 1]
    values[axis] = number
    with pytest.raises(ValueError, match=rf"^{name} must be at most {LARGEST}, got "):
        atrous_conv2d(x, w, groups=2, **{name: tuple(values)})
    with pytest.raises(ValueError, match=rf"^{name} must be at most {LARGEST}, got "):
        live_fraction((5, 5), 3, **{name: tuple(values)})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: atrous_conv2d(x, wide, padding="same", dilation=LARGEST, groups=2),
         "padding='same' must be at most"),
        (lambda: atrous_conv2d(x, w, padding=LARGEST, groups=2), "more than memory can have"),
        (lambda: atrous_conv2d(x, w, backend="torch", padding=LARGEST, groups=2),
         "more than memory can have"),
        (lambda: multi_rate_conv2d(x, [torch.ones(1, 2, 3, 3)], dilations=[2**62]),
         "dilations must be at most"),
        (lambda: multi_rate_conv2d(x, [torch.ones(1, 2, 5, 5)], dilations=[LARGEST]),
         r"dilations\[0\] times half the kernel must be at most"),
        (lambda: live_fraction((5, 5), 2**31), "kernel_size must be at most"),
        (lambda: live_fraction((2**62, 5), 3), "input_size must be at most"),
        (lambda: upsample_bilinear2d(x, (2**62, 2)), "more than memory can have"),
        (lambda: upsample_bilinear2d(x, 10**18), "more than memory can have"),
        (lambda: upsample_bilinear2d(x, 2**70), "more than memory can have"),
        (lambda: upsample_bilinear2d(x, scale_factor=1e300), "scale_factor must leave sizes below"),
        (lambda: upsample_bilinear2d(x, scale_factor=1.7e308), "scale_factor must leave sizes"),
        (lambda: upsample_bilinear2d(x, scale_factor=1e18), "more than memory can have"),
        (lambda: upsample_bilinear2d(x, scale_factor=1e-30), "output size must be positive"),
        (lambda: upsample_argmax(x, 10**18), "more than memory can have"),
        (lambda: upsample_argmax(x, (1, 2**63)), "more than memory can have"),
        (lambda: upsample_cross_entropy(x, torch.zeros(1, 5, 5).long(), ignore_index=2**63),
         "ignore_index must fit 64 bits"),
        (lambda: upsample_cross_entropy(x, torch.full((1, 5, 5), 2**62)), "target must hold"),
        (lambda: upsample_cross_entropy(x, torch.full((1, 5, 5), -(2**63))), "target must hold"),
        (lambda: DenseCRF(2, iterations=2**62), "iterations must be an int, 0 to"),
    ],
)  # fmt: skip
def test_other_arguments_beyond_their_limits_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


GRAD = torch.ones(1, 2, 5, 5)
SAME = ((1, 1), (1, 1, 1, 1), (1, 1), 2)


def with_number(place, number):
    """Returns arguments of a convolution with a number in one place."""
    stride, sides, dilation, groups = (list(v) if isinstance(v, tuple) else v for v in SAME)
    if place == "groups":
        return stride, sides, dilation, number
    {"stride": stride, "padding": sides, "dilation": dilation}[place][1] = number
    return stride, sides, dilation, groups


@pytest.mark.parametrize("number", [0, -1, *TOO_LARGE])
@pytest.mark.parametrize("place", ["stride", "padding", "dilation", "groups"])
@pytest.mark.parametrize(
    "call",
    [
        lambda *options: forward_op(x, w, None, *options),
        lambda *options: fused_op(x, w, None, None, True, *options),
        lambda *options: backward_input_op(GRAD, w, x.shape, *options),
        lambda *options: backward_weight_op(GRAD, x, w.shape, *options),
        lambda *options: operators._atrous_conv2d_algorithm(
            x, 0, x.shape, w.shape, *options[:4], False, True, False
        ),
    ],
    ids=["forward", "fused", "backward_input", "backward_weight", "algorithm"],
)
def test_convolutions_called_directly_refuse_extremes(call, place, number):
    if (place, number) == ("padding", 0):
        number = -(2**63)
    with pytest.raises(RuntimeError, match=r"must|does not fit"):
        call(*with_number(place, number))


@pytest.mark.parametrize(
    "call",
    [
        lambda n: backward_input_op(GRAD, w, (1, 2, n, 5), *SAME),
        lambda n: backward_input_op(GRAD, w, (n, 2, 5, 5), *SAME),
        lambda n: backward_weight_op(GRAD, x, (2, 1, n, 3), *SAME),
        lambda n: backward_weight_op(GRAD, x, (2, n, 3, 3), *SAME),
        lambda n: pack_op(w, n),
        lambda n: operators.multi_rate_conv2d(x, [torch.ones(1, 2, 3, 3)], None, [n], False, False),
        lambda n: operators.upsample_bilinear2d(x, (n, n), False),
        lambda n: operators._upsample_bilinear2d_backward(x, n, n, False),
        lambda n: operators._upsample_argmax(x, (n, n), False, False, False),
        lambda n: operators._mean_field(torch.zeros(1, 2, 4), [], [], n),
        lambda n: operators._mean_field_states(torch.zeros(1, 2, 4), [], [], n),
    ],
)
@pytest.mark.parametrize("number", [2**62, 2**63 - 1, -1])
def test_operators_called_directly_refuse_extreme_sizes(call, number):
    with pytest.raises(RuntimeError):
        call(number)


def test_points_of_a_long_map_are_found_without_listing_its_tiles():
    began = time.perf_counter()
    sizes = ((1, 64, 2**40, 2**10), (64, 64, 3, 3))
    found = points_of(*sizes, (1, 1), (1,) * 4, (1, 1), 1, True, torch.float32)
    assert found == [4, 4]
    assert time.perf_counter() - began < 1


@given(
    size=st.integers(1, 30),
    taps=st.integers(1, 40),
    stride=st.integers(1, 9),
    padding=st.integers(0, 40),
    dilation=st.integers(1, 9),
)
def test_live_fraction_counts_every_pair(size, taps, stride, padding, dilation):
    outputs = (size + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
    if outputs <= 0:
        return
    samples = (o * stride - padding + k * dilation for o in range(outputs) for k in range(taps))
    live = sum(0 <= sample < size for sample in samples)
    found = live_fraction((size, 1), (taps, 1), stride, (padding, 0), dilation)
    assert found == pytest.approx(live / (outputs * taps))


def test_live_fraction_takes_as_long_for_any_kernel():
    # Every tap is live at every output with room for it: 2**31 - 3 of 2**31 - 1 outputs.
    taps = LARGEST
    assert 0 < live_fraction((LARGEST, 3), (taps, 1), padding=(LARGEST // 2, 0)) < 1


def definition(arguments, weight, grad):
    """Returns result and gradients by the definition, in float64; None if there is no result."""
    batch, stride, padding, dilation, groups = arguments
    data, filters = to_float64(batch), to_float64(weight)
    sides, taps = (*padding, *padding), weight.shape[2:]
    options = (stride, sides, dilation, groups)
    slopes = to_float64(grad)
    return (
        reference.forward(data, filters, None, *options),
        reference.backward_input(slopes, filters, batch.shape[2:], *options),
        reference.backward_weight(slopes, data, tuple(taps), *options),
    )


def output_extents(size, taps, stride, padding, dilation):
    """Returns the exact output size, or None if the operator must reject the arguments."""
    numbers = (*stride, *dilation)
    if min(numbers) < 1 or max(*numbers, *padding) > LARGEST:
        return None
    return [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(size, taps, stride, padding, dilation, strict=True)
    ]


# Channels per group, outputs per group, groups.
GROUPS = {"depthwise": (1, 1, 3), "narrow": (2, 3, 2), "wide": (9, 8, 1), "many": (1, 1, 40)}


def pairs_of(allowed):
    """Mostly valid numbers, because invalid ones end the call immediately."""
    number = st.sampled_from(4 * allowed + EXTREMES)
    return st.tuples(number, number)


@settings(max_examples=400, deadline=None)
@given(
    kind=st.sampled_from(sorted(GROUPS)),
    size=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    taps=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=pairs_of([1, 2, 3, 7, LARGEST]),
    padding=pairs_of([0, 1, 2, 3, 7, LARGEST]),
    dilation=pairs_of([1, 2, 3, 7, LARGEST]),
    memory_format=st.sampled_from([torch.contiguous_format, torch.channels_last]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_convolution_of_extremes_raises_or_is_right(
    kind, size, taps, stride, padding, dilation, memory_format, dtype
):
    channels, outputs, groups = GROUPS[kind]
    batch = torch.randn(1, channels * groups, *size).to(dtype, memory_format=memory_format)
    weight = torch.randn(outputs * groups, channels, *taps).to(dtype)
    batch.requires_grad_()
    weight.requires_grad_()
    extents = output_extents(size, taps, stride, padding, dilation)
    pixels = 0 if extents is None else extents[0] * extents[1]
    if 400 < pixels < 2**40:
        return  # valid, but it would only take long
    began = time.perf_counter()
    if extents is None or min(extents) <= 0 or pixels >= 2**40:
        with pytest.raises((ValueError, RuntimeError)):
            atrous_conv2d(batch, weight, None, stride, padding, dilation, groups)
    else:
        result = atrous_conv2d(batch, weight, None, stride, padding, dilation, groups)
        grad = torch.randn_like(result)
        found = (result, *torch.autograd.grad(result, (batch, weight), grad))
        expected = definition((batch, stride, padding, dilation, groups), weight, grad)
        for actual, exact in zip(found, expected, strict=True):
            rounding = 8 * torch.finfo(dtype).eps
            np.testing.assert_allclose(to_float64(actual), exact, rounding, 1e-4)
    assert time.perf_counter() - began < 20


@pytest.mark.parametrize("groups", [2, 1], ids=["depthwise", "narrow"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("stride", "padding", "dilation"),
    [(10_000, 10_000, 1), (LARGEST, LARGEST, 1), (1, LARGEST, LARGEST), (1000, 1000, 1000)],
)
def test_memory_follows_live_taps(groups, memory_format, stride, padding, dilation):
    """Memory of forward and backward does not depend on the padding."""
    data = torch.randn(1, 2, 5, 5).to(memory_format=memory_format).requires_grad_()
    filters = torch.randn(2, 2 // groups, 3, 3).requires_grad_()
    options = ((stride, stride), (padding, padding), (dilation, dilation), groups)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    result = atrous_conv2d(data, filters, None, *options)
    grad = torch.ones_like(result)
    found = (result, *torch.autograd.grad(result, (data, filters), grad))
    assert time.perf_counter() - began < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # KiB
    for actual, exact in zip(found, definition((data, *options), filters, grad), strict=True):
        np.testing.assert_allclose(to_float64(actual), exact, 1e-5, 1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e-300, 5e-324, 1e300, float("inf"), float("nan")])
@pytest.mark.parametrize("size", [(1, 1), (3, 9), (2, 70)])
@pytest.mark.parametrize("channels", [2, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_resampling_by_extreme_scales_reads_the_map(scale, size, channels, dtype):
    values = torch.randn(1, channels, 4, 5).to(dtype)
    found = operators.upsample_bilinear2d(values, size, False, scale, scale)
    grad = torch.randn_like(found)
    gradient = operators._upsample_bilinear2d_backward(grad, 4, 5, False, scale, scale)
    if scale != scale:  # NaN counts as no scale
        expected = operators.upsample_bilinear2d(values, size, False)
        of_input = operators._upsample_bilinear2d_backward(grad, 4, 5, False)
    else:
        # All outputs read the same input: the last one or the first one.
        first = 0 if scale > 1 else -1
        expected = values[..., first, first, None, None].expand_as(found)
        of_input = torch.zeros_like(values)
        of_input[..., first, first] = grad.sum((2, 3), dtype=torch.float64).to(dtype)
    torch.testing.assert_close(found, expected)
    # Sums of half types may have one rounding more or less.
    tolerance = {} if dtype != torch.bfloat16 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(gradient, of_input, **tolerance)


@pytest.mark.parametrize("ignored", [2**63 - 1, -(2**63)])
def test_ignored_labels_may_be_any_number(ignored):
    logits, target = torch.randn(1, 3, 4, 4), torch.randint(3, (1, 4, 4))
    target[0, 1] = ignored
    found = upsample_cross_entropy(logits, target, ignore_index=ignored)
    expected = torch.nn.functional.cross_entropy(logits, target, ignore_index=ignored)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("ignored", [1.5, True, None])
def test_ignore_index_is_an_int(ignored):
    with pytest.raises(TypeError, match="ignore_index must be an int"):
        upsample_cross_entropy(x, torch.zeros(1, 5, 5).long(), ignore_index=ignored)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e38, -1e38, 1e-45])
@pytest.mark.parametrize("features", [1, 2, 5, 32])
def test_lattices_of_extreme_features_stay_within_bounds(value, features):
    points = torch.randn(1, features, 37)
    points[:, ::2, ::3] = value
    if value != 1e-45:
        with pytest.raises(ValueError, match="features must be"):
            atrousx.ops.permutohedral_filter(torch.ones(1, 1, 37), points)
    # Without the check, a direct call may raise. If not, its indices stay within its tensors.
    try:
        lattice = operators._permutohedral_assemble(points)
    except RuntimeError:
        return
    weights, vertices, starts, entries, _, neighbours = lattice
    count = neighbours.shape[2]
    assert weights.shape == (37, features + 1)
    for indices, least, most in (
        (vertices, 0, count - 1),
        (starts, 0, entries.numel()),
        (entries, 0, 36),
        (neighbours, -1, count - 1),
    ):
        assert least <= int(indices.min())
        assert int(indices.max()) <= most


@pytest.mark.parametrize("words", [(0, 2**62, 2**62), (0, 1, 0), (-1, 0, 0), (0, 0, 2**31 - 1)])
def test_key_layouts_are_checked(words):
    base, rank, _ = operators._permutohedral_embed(torch.randn(1, 2, 5))
    with pytest.raises(RuntimeError, match="key layout"):
        operators._permutohedral_pack(base, rank, words, (1, 1, 1), (0, 0, 0))
