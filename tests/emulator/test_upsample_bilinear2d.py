"""The CUDA kernels and the plan of upsample_bilinear2d, run on the host."""

from __future__ import annotations

import numpy as np
import pytest

from tests.optional import given, st
from tests.reference import upsample_bilinear2d as reference

# Up, down, one pixel, equal, several tiles of a block, and widths that are whole vectors.
SIZES = [
    ((2, 3), (5, 7)),
    ((5, 7), (2, 3)),
    ((1, 1), (3, 2)),
    ((4, 4), (4, 4)),
    ((9, 70), (35, 280)),
    ((6, 40), (4, 16)),
]
# Both sides of the interpolation rounded once, in units of the dtype's epsilon at values near 1.
TOLERANCE = {"float32": 2e-6, "float16": 2e-3}


def random(rng, shape, dtype):
    return rng.uniform(-1, 1, shape).astype(dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("small", "large"), SIZES)
def test_forward_and_backward(emulated, small, large, align_corners, channels_last, dtype):
    rng = np.random.default_rng(0)
    options = (align_corners, channels_last, 3)
    values = random(rng, (2, 3, *small), dtype)
    expected = reference.forward(values, large, align_corners)
    actual = emulated.upsample_bilinear2d_forward(values, large, *options)
    # Coordinates are rounded to float32, too: the further out, the coarser.
    atol = TOLERANCE[dtype] * (1 + max(small) / 16)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)

    grad = random(rng, (2, 3, *large), dtype)
    expected = reference.backward(grad, small, align_corners)
    scale = max(1.0, np.abs(expected).max())
    for pixels in ("short", "long", "far"):
        actual = emulated.upsample_bilinear2d_backward(grad, small, *options[:2], pixels, 3)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=atol * scale)


# A scale factor of its own leaves the last columns of the input unread, whole jobs of them; what
# lies behind the last gradients is not theirs to load (AddressSanitizer).
@pytest.mark.parametrize(("channels", "pixels"), [(64, "long"), (3, "short"), (4, "short")])
def test_columns_that_nothing_reads(emulated, channels, pixels):
    small, large, factor = (3, 1), (12, 199), 0.01
    grad = random(np.random.default_rng(0), (1, channels, *small), "float32")
    expected = reference.backward(grad, large, False, scale_factor=factor)
    actual = emulated.upsample_bilinear2d_backward(grad, large, False, True, pixels, 3, factor)
    assert (expected[..., 51:] == 0).all()
    np.testing.assert_allclose(actual, expected, atol=1e-5)


# Pixels that are vectors, and pixels too long for a block: pieces of them, with and without.
@pytest.mark.parametrize("channels", [8, 150, 152])
def test_long_pixels(emulated, channels):
    rng = np.random.default_rng(0)
    values = random(rng, (2, channels, 5, 14), "float32")
    grad = random(rng, (2, channels, 11, 29), "float32")
    actual = emulated.upsample_bilinear2d_forward(values, (11, 29), False, True, 2)
    np.testing.assert_allclose(actual, reference.forward(values, (11, 29), False), atol=4e-6)
    actual = emulated.upsample_bilinear2d_backward(grad, (5, 14), False, True, "long", 2)
    np.testing.assert_allclose(actual, reference.backward(grad, (5, 14), False), atol=2e-5)


def test_weight_of_zero_stops_infinity(emulated):
    grad = np.zeros((1, 1, 3, 3), np.float32)
    grad[0, 0, 1, 1] = np.inf
    for pixels in ("short", "long", "far"):
        actual = emulated.upsample_bilinear2d_backward(grad, (2, 2), True, False, pixels, 1)
        assert np.isinf(actual).all()  # the centre belongs to all four corners
        actual = emulated.upsample_bilinear2d_backward(grad, (3, 3), True, False, pixels, 1)
        np.testing.assert_array_equal(actual, grad)


def test_a_column_of_too_many_gradients_is_refused(emulated):
    grad = np.zeros((1, 1, 1, 999), np.float32)
    with pytest.raises(ValueError, match="too many gradients"):
        emulated.upsample_bilinear2d_backward(grad, (1, 1), False, False, "short", 1)


def test_bfloat16_rounds_once(emulated):
    values = np.linspace(-1, 1, 12, dtype=np.float32).reshape(1, 1, 3, 4)
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)  # truncation is exact enough as input
    exact = (bits.astype(np.uint32) << 16).view(np.float32)
    result = emulated.upsample_bilinear2d_forward(bits, (7, 9), False, False, 1)
    actual = (result.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_allclose(actual, reference.forward(exact, (7, 9), False), atol=2**-9)


axes = st.tuples(st.integers(1, 40), st.integers(1, 40), st.booleans())


@given(axis=axes, scale=st.one_of(st.none(), st.floats(0.05, 20)))
def test_plan_readers_are_the_taps_transposed(emulator_module, axis, scale):
    size_in, size_out, align_corners = axis
    taps = emulator_module.bilinear_taps(size_in, size_out, align_corners, scale)
    readers = emulator_module.bilinear_readers(size_in, size_out, align_corners, scale)
    for output, (lower, upper, weight) in enumerate(taps):
        assert 0 <= lower <= upper < size_in
        assert 0 <= weight <= 1
        for sample, share in ((lower, 1 - weight), (upper, weight)):
            first, last = readers[sample]
            assert share == 0 or first <= output < last


@given(axis=axes)
def test_plan_matches_the_definition(emulator_module, axis):
    size_in, size_out, align_corners = axis
    matrix = np.zeros((size_out, size_in))
    for output, (lower, upper, weight) in enumerate(
        emulator_module.bilinear_taps(size_in, size_out, align_corners, None)
    ):
        matrix[output, lower] += 1 - weight
        matrix[output, upper] += weight
    expected = reference.axis_matrix(size_in, size_out, align_corners)
    np.testing.assert_allclose(matrix, expected, atol=1e-5)


def test_offsets_pass_32_bits(emulator_module):
    strides = (21 * 4096 * 4096, 4096 * 4096, 4096, 1)
    index = (31, 20, 4095, 4095)
    offset = emulator_module.strides4_offset(strides, index)
    assert offset == sum(s * i for s, i in zip(strides, index, strict=True))
    assert offset > 2**31
