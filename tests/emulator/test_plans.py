"""Compares the kernels' plans with brute force and with results computed on paper, also beyond 32
bits."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from tests.emulator.device import add_device
from tests.optional import given, settings, st
from tests.reference import upsample_bilinear2d

pytestmark = pytest.mark.emulated
FORWARD, GRAD_INPUT = range(2)


@pytest.fixture(scope="module")
def plans():
    add_device()
    return torch.ops.atrousx_plans


@st.composite
def axis_arguments(draw):
    """Draws (in, out, taps, stride, padding, dilation) of one axis with a non-empty output."""
    taps, stride, dilation = (draw(st.integers(1, high)) for high in (7, 6, 8))
    padding, size = draw(st.integers(0, 20)), draw(st.integers(1, 24))
    room = size + 2 * padding - dilation * (taps - 1) - 1
    if room < 0:
        size, room = size - room, 0
    return size, room // stride + 1, taps, stride, padding, dilation


def live(arguments, direction):
    """Returns {(destination, tap): source} by the definition."""
    size, out, taps, stride, padding, dilation = arguments
    pairs = {}
    for o in range(out):
        for k in range(taps):
            i = o * stride - padding + k * dilation
            if 0 <= i < size:
                pairs[(o, k) if direction == FORWARD else (i, k)] = i if direction == FORWARD else o
    return pairs


directions = st.sampled_from([FORWARD, GRAD_INPUT])


@given(arguments=axis_arguments(), direction=directions)
@settings(deadline=None)
def test_axis_against_brute_force(plans, arguments, direction):
    axis = [direction, *arguments]
    destinations = arguments[1] if direction == FORWARD else arguments[0]
    expected = live(arguments, direction)
    for k in range(arguments[2]):
        for d in range(destinations):
            assert plans.tap_source(axis, d, k) == expected.get((d, k), -1)
        first, step, count, source_first, source_step = plans.tap_span(axis, k)
        spanned = {first + j * step: source_first + j * source_step for j in range(count)}
        assert spanned == {d: s for (d, tap), s in expected.items() if tap == k}

    found, seen = {}, []
    for row in plans.tap_classes(axis).tolist():
        at, through, (source_first, per_destination, per_tap) = row[:3], row[3:6], row[6:]
        for j in range(at[2]):
            destination = at[0] + j * at[1]
            seen.append(destination)
            for i in range(through[2]):
                source = source_first + j * per_destination + i * per_tap
                found[destination, through[0] + i * through[1]] = source
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
def test_tiles_against_brute_force(plans, rows, columns, direction, batch, tile):
    axes = [[direction, *a] for a in (rows, columns)]
    source, destination = (0, 1) if direction == FORWARD else (1, 0)
    height, width = rows[source], columns[source]
    out_height, out_width = rows[destination], columns[destination]
    # With the strides of dense [N, rows, columns] maps each offset identifies its pixel.
    strides = [[h * w, 0, w, 1] for h, w in ((out_height, out_width), (height, width))]
    expected = {
        ((n * out_height + r) * out_width + c, i, j): (n * height + h) * width + w
        for (r, i), h in live(rows, direction).items()
        for (c, j), w in live(columns, direction).items()
        for n in range(batch)
    }
    pixels, reads = (t.tolist() for t in plans.tap_pixels(*axes, batch, tile, *strides))
    assert {tuple(key): s for *key, s in reads} == expected
    assert len(reads) == len(expected)
    assert sorted(offset for _, offset in pixels) == list(range(batch * out_height * out_width))
    assert max(Counter(number for number, _ in pixels).values()) <= tile


def test_rate_18_by_hand(plans):
    """33 pixels at rate 18: each end loses one tap, and the middle three pixels lose both."""
    assert plans.tap_classes([FORWARD, 33, 33, 3, 1, 18, 18]).tolist() == [
        [0, 1, 15, 1, 1, 2, 0, 1, 18],
        [15, 1, 3, 1, 1, 1, 15, 1, 18],
        [18, 1, 15, 0, 1, 2, 0, 1, 18],
    ]


def test_taps_are_counted_in_64_bits(plans):
    """2^18 images of 2^13 x 2^13 pixels with 64 channels: 2^50 elements. The plan is as cheap as
    any."""
    side, batch, channels = 2**13, 2**18, 64
    axis = [FORWARD, side, side, 3, 1, 12, 12]
    strides = (channels * side * side, side * side, side, 1)
    assert plans.tap_tiles(axis, axis, batch, 64) >= batch * side * side // 64
    to, source = plans.last_tap_offsets(axis, axis, batch, 64, strides)
    last_plane = (batch * channels - channels) * side * side
    assert to == last_plane + side * side - 1
    assert source == to - 12 * side - 12  # its first live tap lies 12 pixels up and left
    assert plans.grad_weight_splits(9, batch * side * side, 512) == 57

    line = [GRAD_INPUT, 2**40, 2**39, 2, 2, 0, 1]
    assert plans.tap_source(line, 2**40 - 2, 0) == 2**39 - 1
    assert plans.tap_span(line, 0) == [0, 2, 2**39, 0, 1]
    assert plans.tap_span(line, 1) == [1, 2, 2**39, 0, 1]


def test_plans_are_kept_for_any_thread_and_bounded(plans):
    axes = [[FORWARD, n, n, 3, 1, 2, 2] for n in range(4, 104)]
    expected = [plans.tap_tiles(a, a, 1, 4) for a in axes]

    def ask(start):
        order = [(start + 37 * i) % len(axes) for i in range(len(axes))]
        return all(plans.cached_tap_tiles(axes[i], axes[i], 1, 4) == expected[i] for i in order * 5)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(8)))
    kept = plans.cached_plans()
    assert 1 < kept < len(axes)
    # A plan that is too large for the cache is computed, and does not evict others.
    line = [FORWARD, 900, 900, 300, 1, 0, 1]
    assert plans.cached_tap_tiles(line, line, 1, 4) == plans.tap_tiles(line, line, 1, 4)
    assert plans.cached_plans() == kept


def test_a_thread_counts_past_the_last_pixel_in_32_bits(plans):
    assert plans.is_countable(2**10, 2**20)
    assert not plans.is_countable(1, 2**31)
    # With 2^31 - 1 pixels the last one has a 32-bit number, but a thread's next step does not.
    assert not plans.is_countable(1, 2**31 - 1)


@pytest.mark.parametrize("tile", [5, 128])
def test_union_tiles_cover_every_pixel_once(plans, tile):
    batch, height, width = 3, 9, 11
    seen = torch.zeros(batch, height, width, dtype=torch.int64)
    taps, dilations = [3, 5, 3], [2, 1, 20]
    tiles = plans.union_tiles((batch, height, width), taps, dilations, tile).tolist()
    for row, column, rows, columns, first, pixels in tiles:
        assert 1 <= pixels <= tile
        for extent, start, count in ((height, row, rows), (width, column, columns)):
            # All destinations of a class have the same live taps of the first branch.
            classes = {
                tuple(0 <= at + (t - 1) * dilations[0] < extent for t in range(taps[0]))
                for at in range(start, start + count)
            }
            assert len(classes) == 1
        for i in range(first, first + pixels):
            line, c = divmod(i, columns)
            n, r = divmod(line, rows)
            seen[n, row + r, column + c] += 1
    assert (seen == 1).all()


def test_union_of_too_many_borders_has_no_plan(plans):
    assert plans.union_tiles((1, 99, 99), [3], [3], 128).numel() > 0
    assert plans.union_tiles((1, 99, 99), [21], [3], 128).numel() == 0
    assert plans.union_tiles((1, 99, 99), [3] * 9, [1] * 9, 128).numel() == 0


axes = st.tuples(st.integers(1, 40), st.integers(1, 40), st.booleans())


@given(axis=axes, scale=st.one_of(st.none(), st.floats(0.05, 20)))
@settings(deadline=None)
def test_bilinear_readers_are_the_taps_transposed(plans, axis, scale):
    taps = plans.bilinear_taps(*axis, scale).tolist()
    readers = plans.bilinear_readers(*axis, scale).tolist()
    for output, (lower, upper, weight) in enumerate(taps):
        assert 0 <= lower <= upper < axis[0]
        assert 0 <= weight <= 1
        for sample, share in ((lower, 1 - weight), (upper, weight)):
            first, last = readers[int(sample)]
            assert share == 0 or first <= output < last


@given(axis=axes)
@settings(deadline=None)
def test_bilinear_taps_are_the_definition(plans, axis):
    size_in, size_out, _ = axis
    matrix = np.zeros((size_out, size_in))
    for output, (lower, upper, weight) in enumerate(plans.bilinear_taps(*axis, None).tolist()):
        matrix[output, int(lower)] += 1 - weight
        matrix[output, int(upper)] += weight
    expected = upsample_bilinear2d.axis_matrix(*axis)
    np.testing.assert_allclose(matrix, expected, atol=1e-5)


def test_offsets_pass_32_bits(plans):
    strides = (21 * 4096 * 4096, 4096 * 4096, 4096, 1)
    index = (31, 20, 4095, 4095)
    offset = plans.offset(strides, index)
    assert offset == sum(s * i for s, i in zip(strides, index, strict=True))
    assert offset > 2**31
