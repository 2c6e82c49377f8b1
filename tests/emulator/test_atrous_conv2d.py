"""The CUDA kernels and the tap plan of atrous_conv2d, run on the host."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.optional import given, settings, st
from tests.reference import atrous_conv2d as reference

# Sums of up to a few hundred products of numbers in [-1, 1], and one final rounding.
TOLERANCE = {"float64": 1e-12, "float32": 2e-5, "float16": 5e-3}

# N, C, K, groups, (H, W), (KH, KW), stride, padding, dilation
CASES = {
    "rate 3, several tiles": (2, 9, 10, 1, (7, 9), (3, 3), (1, 1), (3, 3), (3, 3)),
    "strided": (1, 8, 8, 1, (7, 8), (3, 2), (2, 3), (1, 2), (1, 2)),
    "more channels than a tile": (1, 70, 66, 1, (2, 3), (1, 2), (1, 1), (0, 1), (1, 1)),
    "groups": (1, 16, 24, 2, (5, 4), (2, 3), (1, 2), (2, 2), (2, 1)),
    "depthwise": (2, 5, 5, 5, (6, 5), (3, 3), (1, 1), (2, 2), (2, 2)),
    "dead pixels": (1, 8, 8, 1, (1, 2), (2, 2), (1, 1), (4, 3), (3, 2)),
    "many classes": (1, 8, 8, 1, (9, 3), (9, 1), (1, 1), (8, 0), (1, 1)),
}


def problem(name, dtype):
    batch, channels, outputs, groups, size, taps, stride, padding, dilation = CASES[name]
    rng = np.random.default_rng(0)
    x, w, b = (
        rng.uniform(-1, 1, shape).astype(dtype)
        for shape in ((batch, channels, *size), (outputs, channels // groups, *taps), outputs)
    )
    geometry = (stride, (*padding, *padding), dilation, groups)
    y = reference.forward(x, w, b, *geometry)
    return x, w, b, y, rng.uniform(-1, 1, y.shape).astype(dtype), geometry


# Both layouts, all dtypes, and the narrow-group kernels on every geometry.
VARIANTS = [
    (False, False, "float32"),
    (True, False, "float16"),
    (False, True, "float64"),
    (True, True, "float16"),
]


@pytest.mark.parametrize(
    ("name", "channels_last", "direct", "dtype"),
    # The narrow-group kernels have no tile to exceed.
    [(n, *v) for n in CASES for v in VARIANTS if not (v[1] and n == "more channels than a tile")],
)
def test_three_passes(emulated, name, channels_last, direct, dtype):
    x, w, b, y, grad, geometry = problem(name, dtype)
    stride, sides, dilation, groups = geometry
    # Two blocks for more jobs than that: shared memory is used again.
    options = emulated.ConvOptions(stride, sides[:2], dilation, groups, channels_last, direct, 2)
    close = {"rtol": 0, "atol": TOLERANCE[dtype]}

    actual = emulated.atrous_conv2d_forward(x, w, b, y.shape[2:], options)
    np.testing.assert_allclose(actual, y, **close)

    actual = emulated.atrous_conv2d_backward_input(grad, w, x.shape[2:], options)
    expected = reference.backward_input(grad, w, x.shape[2:], *geometry)
    np.testing.assert_allclose(actual, expected, **close)

    actual = emulated.atrous_conv2d_backward_weight(grad, x, w.shape[2:], 3, options)
    expected = reference.backward_weight(grad, x, w.shape[2:], *geometry)
    scale = max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE[dtype] * scale)


def test_without_bias_and_in_bfloat16(emulated):
    # Powers of two survive bfloat16, so the result is exact: 1 + 2 + 4 + 8 = 15.
    def bits(array):
        return (np.asarray(array, np.float32).view(np.uint32) >> 16).astype(np.uint16)

    options = emulated.ConvOptions((1, 1), (0, 0), (1, 2), 1, False, False, 1)
    x, w = bits([[[[1, 0, 2], [4, 0, 8]]]]), bits([[[[1, 1], [1, 1]]]])
    result = emulated.atrous_conv2d_forward(x, w, None, (1, 1), options)
    assert (result.astype(np.uint32) << 16).view(np.float32).item() == 15


def test_infinite_weights_do_not_meet_padding(emulated):
    # A dead tap that were multiplied by zero would give NaN.
    options = emulated.ConvOptions((1, 1), (2, 2), (2, 2), 1, False, False, 1)
    w = np.full((1, 1, 3, 3), np.inf, np.float32)
    w[0, 0, 1, 1] = 3
    result = emulated.atrous_conv2d_forward(
        np.ones((1, 1, 2, 2), np.float32), w, None, (2, 2), options
    )
    assert (result == 3).all()


@st.composite
def axis_arguments(draw):
    """(in, out, taps, stride, padding, dilation) of one axis with a non-empty output."""
    taps, stride, dilation = (draw(st.integers(1, high)) for high in (7, 6, 8))
    padding, size = draw(st.integers(0, 20)), draw(st.integers(1, 24))
    room = size + 2 * padding - dilation * (taps - 1) - 1
    if room < 0:
        size, room = size - room, 0
    return size, room // stride + 1, taps, stride, padding, dilation


def live(arguments, direction):
    """{(destination, tap): source} by the definition."""
    size, out, taps, stride, padding, dilation = arguments
    pairs = {}
    for o in range(out):
        for k in range(taps):
            i = o * stride - padding + k * dilation
            if 0 <= i < size:
                pairs[(o, k) if direction == "forward" else (i, k)] = (
                    i if direction == "forward" else o
                )
    return pairs


directions = st.sampled_from(["forward", "grad_input"])


@given(arguments=axis_arguments(), direction=directions)
def test_plan_axis_against_brute_force(emulator_module, arguments, direction):
    axis = getattr(emulator_module.TapAxis, direction)(*arguments)
    destinations = arguments[1] if direction == "forward" else arguments[0]
    expected = live(arguments, direction)
    for k in range(arguments[2]):
        for d in range(destinations):
            assert axis.source(d, k) == expected.get((d, k), -1)
        (first, step, count), source_first, source_step = axis.span(k)
        spanned = {first + j * step: source_first + j * source_step for j in range(count)}
        assert spanned == {d: s for (d, tap), s in expected.items() if tap == k}

    found, seen = {}, []
    for at, through, source_first, per_destination, per_tap in emulator_module.conv_axis_classes(
        axis
    ):
        for j in range(at[2]):
            destination = at[0] + j * at[1]
            seen.append(destination)
            for i in range(through[2]):
                found[destination, through[0] + i * through[1]] = (
                    source_first + j * per_destination + i * per_tap
                )
    assert found == expected
    assert sorted(seen) == list(range(destinations))


@given(
    rows=axis_arguments(),
    columns=axis_arguments(),
    direction=directions,
    batch=st.integers(1, 3),
    tile=st.integers(1, 70),
)
@settings(deadline=None, max_examples=50)
def test_plan_tiles_against_brute_force(emulator_module, rows, columns, direction, batch, tile):
    axes = [getattr(emulator_module.TapAxis, direction)(*a) for a in (rows, columns)]
    source, destination = (0, 1) if direction == "forward" else (1, 0)
    sizes = rows[source], columns[source], rows[destination], columns[destination]
    # Offsets of dense [N, rows, columns] maps, so that each names its pixel.
    strides = [(h * w, 0, w, 1) for h, w in (sizes[2:], sizes[:2])]
    live_rows, live_columns = live(rows, direction), live(columns, direction)
    expected = {}
    for (r, i), h in live_rows.items():
        for (c, j), w in live_columns.items():
            for n in range(batch):
                expected[(n * sizes[2] + r) * sizes[3] + c, i, j] = (n * sizes[0] + h) * sizes[
                    1
                ] + w
    found, seen = {}, []
    for taps, pixels in emulator_module.conv_tiles(*axes, batch, tile, *strides):
        assert 1 <= len(pixels) <= tile
        for offset, sources in pixels:
            seen.append(offset)
            for (i, j), s in zip(taps, sources, strict=True):
                found[offset, i, j] = s
    assert found == expected
    assert sorted(seen) == list(range(batch * sizes[2] * sizes[3]))


def test_plan_of_rate_18_by_hand(emulator_module):
    """A 33-pixel axis at rate 18: each end loses one tap, the middle three pixels both."""
    axis = emulator_module.TapAxis.forward(33, 33, 3, 1, 18, 18)
    assert emulator_module.conv_axis_classes(axis) == [
        ((0, 1, 15), (1, 1, 2), 0, 1, 18),
        ((15, 1, 3), (1, 1, 1), 15, 1, 18),
        ((18, 1, 15), (0, 1, 2), 0, 1, 18),
    ]


def test_plan_counts_in_64_bits(emulator_module):
    """2^18 images of 2^13 x 2^13 pixels, 64 channels: 2^50 elements, and the plan is as cheap."""
    side, batch, channels = 2**13, 2**18, 64
    axis = emulator_module.TapAxis.forward(side, side, 3, 1, 12, 12)
    strides = (channels * side * side, side * side, side, 1)
    assert emulator_module.conv_tile_count(axis, axis, batch, 64) >= batch * side * side // 64
    to, source = emulator_module.conv_last_offsets(axis, axis, batch, 64, strides, strides)
    last_plane = (batch * channels - channels) * side * side
    assert to == last_plane + side * side - 1
    assert source == to - 12 * side - 12  # its first live tap lies 12 pixels up and left
    assert emulator_module.conv_grad_weight_splits(9, batch * side * side, 512) == 57

    line = emulator_module.TapAxis.grad_input(2**40, 2**39, 2, 2, 0, 1)
    assert line.source(2**40 - 2, 0) == 2**39 - 1
    assert line.span(0) == ((0, 2, 2**39), 0, 1)
    assert line.span(1) == ((1, 2, 2**39), 0, 1)


def test_plans_are_kept_for_any_thread_and_bounded(emulator_module):
    axes = [emulator_module.TapAxis.forward(n, n, 3, 1, 2, 2) for n in range(4, 104)]
    expected = [emulator_module.conv_tile_count(a, a, 1, 4) for a in axes]

    def ask(start):
        order = [(start + 37 * i) % len(axes) for i in range(len(axes))]
        return all(
            emulator_module.conv_cached_tile_count(axes[i], axes[i], 1, 4) == expected[i]
            for i in order * 5
        )

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(8)))
    kept = emulator_module.conv_cached_plans()
    assert 1 < kept < len(axes)
    # A plan too large to keep is made, and leaves the others alone.
    line = emulator_module.TapAxis.forward(900, 900, 300, 1, 0, 1)
    count = emulator_module.conv_tile_count(line, line, 1, 4)
    assert emulator_module.conv_cached_tile_count(line, line, 1, 4) == count
    assert emulator_module.conv_cached_plans() == kept
