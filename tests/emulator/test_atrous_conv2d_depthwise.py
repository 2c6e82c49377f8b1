"""The depthwise kernels of atrous_conv2d, run on the host."""

from __future__ import annotations

import numpy as np
import pytest

from tests.reference import atrous_conv2d as reference

# N, C, (H, W), (KH, KW), stride, padding (of both sides, or top, left, bottom, right), dilation
CASES = {
    "rate 4": (2, 16, (9, 11), (3, 3), (1, 1), (4, 4), (4, 4)),
    "strided": (1, 8, (8, 7), (3, 2), (2, 3), (1, 2), (1, 2)),
    "asymmetric": (1, 8, (6, 5), (2, 4), (1, 1), (0, 1, 2, 2), (2, 1)),
    # More taps than a grad-weight sums at once, more channels than a chunk, an odd image.
    "5x5": (1, 72, (3, 4), (5, 5), (1, 1), (2, 2), (1, 1)),
    "dead pixels": (1, 8, (1, 2), (2, 2), (1, 1), (4, 3), (3, 2)),
}
# Sums of up to a few hundred products of numbers in [-1, 1], and one final rounding.
TOLERANCE = {"float64": 1e-12, "float32": 2e-5, "float16": 5e-3, "bfloat16": 4e-2}
# dtype, channels_last, planes staged together (as many as there are, or one), parts
VARIANTS = [
    ("float16", True, 0, 2),
    ("float32", False, 0, 1),
    ("bfloat16", False, 1, 2),
    ("float64", True, 0, 1),
    ("float64", False, 0, 2),
]


def bits_of(array, dtype):
    """What the kernels take: bfloat16 has its bits in uint16."""
    if dtype != "bfloat16":
        return array.astype(dtype)
    bits = array.astype(np.float32).view(np.uint32)
    return (bits + 0x7FFF + (bits >> 16 & 1) >> 16).astype(np.uint16)


def values_of(array):
    if array.dtype != np.uint16:
        return array
    return (array.astype(np.uint32) << 16).view(np.float32)


def problem(name, dtype, channels_last):
    batch, channels, size, taps, stride, padding, dilation = CASES[name]
    if not channels_last:
        channels = 5 if batch == 1 else 7  # some blocks then have planes of two images, or fewer
    rng = np.random.default_rng(0)
    sides = padding if len(padding) == 4 else (*padding, *padding)
    geometry = (stride, sides, dilation, channels)

    def operand(*shape):
        return bits_of(rng.uniform(-1, 1, shape), dtype)

    x, w, b = operand(batch, channels, *size), operand(channels, 1, *taps), operand(channels)
    y = reference.forward(values_of(x), values_of(w), values_of(b), *geometry)
    return x, w, b, operand(*y.shape), y, geometry


@pytest.mark.parametrize(
    ("name", "variant"), [(n, v) for i, n in enumerate(CASES) for v in VARIANTS[i % 2 :]]
)
def test_three_passes(emulated, name, variant):
    dtype, channels_last, planes, parts = variant
    x, w, b, grad, y, geometry = problem(name, dtype, channels_last)
    stride, sides, dilation, _ = geometry
    # Two blocks for more jobs than that: shared memory is used again.
    options = emulated.DepthwiseOptions(
        stride, sides[:2], dilation, channels_last, planes, parts, 2
    )

    def check(actual, expected):
        scale = max(1.0, np.abs(expected).max())
        np.testing.assert_allclose(
            values_of(actual), expected, rtol=0, atol=TOLERANCE[dtype] * scale
        )

    check(emulated.depthwise_forward(x, w, b, None, False, y.shape[2:], options), y)
    actual = emulated.depthwise_forward(x, w, b, grad, True, y.shape[2:], options)
    check(actual, np.maximum(y + values_of(grad), 0))
    exact = [values_of(a) for a in (grad, w, x)]
    expected = reference.backward_input(exact[0], exact[1], x.shape[2:], *geometry)
    check(emulated.depthwise_backward_input(grad, w, x.shape[2:], options), expected)
    expected = reference.backward_weight(exact[0], exact[2], w.shape[2:], *geometry)
    check(emulated.depthwise_backward_weight(grad, x, w.shape[2:], options), expected)


@pytest.mark.parametrize("channels_last", [False, True])
def test_infinite_weights_do_not_meet_padding(emulated, channels_last):
    # A dead tap that were multiplied by zero would give NaN.
    options = emulated.DepthwiseOptions((1, 1), (2, 2), (2, 2), channels_last, 0, 1, 1)
    w = np.full((8, 1, 3, 3), np.inf, np.float16)
    w[..., 1, 1] = 3
    x = np.ones((1, 8, 2, 2), np.float16)
    assert (emulated.depthwise_forward(x, w, None, None, False, (2, 2), options) == 3).all()


def test_maps_that_are_not_dense_are_left_to_other_kernels(emulated):
    # Nine channels are no whole vectors of half values.
    options = emulated.DepthwiseOptions((1, 1), (0, 0), (1, 1), True, 0, 1, 1)
    x, w = np.ones((1, 9, 2, 2), np.float16), np.ones((9, 1, 1, 1), np.float16)
    with pytest.raises(RuntimeError, match="not the layout"):
        emulated.depthwise_forward(x, w, None, None, False, (2, 2), options)


def test_grad_weight_of_an_empty_batch_is_zero(emulated):
    for channels_last in (False, True):
        options = emulated.DepthwiseOptions((1, 1), (1, 1), (1, 1), channels_last, 0, 1, 1)
        empty = np.zeros((0, 8, 3, 3), np.float16)
        assert (emulated.depthwise_backward_weight(empty, empty, (3, 3), options) == 0).all()


def test_a_thread_counts_past_the_last_pixel_in_32_bits(emulator_module):
    countable = emulator_module.depthwise_is_countable
    assert countable(2**10, 2**20)
    assert not countable(1, 2**31)
    # 2^31 - 1: the last pixel has a number, but not the one that a thread would take next.
    assert not countable(1, 2**31 - 1)
