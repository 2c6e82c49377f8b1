"""The summing passes of multi_rate_conv2d and the epilogue of the convolution, run on the host."""

from __future__ import annotations

import numpy as np
import pytest

from tests.reference import atrous_conv2d as reference
from tests.reference import multi_rate_conv2d as branches_reference

TOLERANCE = {"float64": 1e-12, "float32": 2e-5, "float16": 1e-2}


@pytest.mark.parametrize("taps", [(3, 3), (1, 3), (5, 3), (7, 1)])
@pytest.mark.parametrize(
    ("channels_last", "direct", "dtype"),
    [(False, False, "float32"), (True, False, "float16"), (True, True, "float64")],
)
def test_every_tap_but_the_centre_once(emulated, taps, channels_last, direct, dtype):
    rng = np.random.default_rng(0)
    x, w, r = (
        rng.uniform(-1, 1, shape).astype(dtype)
        for shape in ((2, 5, 7, 9), (9, 5, *taps), (2, 9, 7, 9))
    )
    # Were the centre multiplied, it would show.
    w[:, :, taps[0] // 2, taps[1] // 2] = np.inf
    rest = w.copy()
    rest[:, :, taps[0] // 2, taps[1] // 2] = 0
    rows, columns = (2 * (extent // 2) for extent in taps)
    geometry = ((1, 1), (rows, columns, rows, columns), (2, 2), 1)
    expected = r + reference.forward(x, rest, None, *geometry)
    for relu in (False, True):
        actual = emulated.multi_rate_off_centre(x, w, r, 2, relu, channels_last, direct)
        wanted = expected.clip(0) if relu else expected
        np.testing.assert_allclose(actual, wanted, rtol=0, atol=TOLERANCE[dtype])


def without_centre(weight):
    rest = weight.copy()
    rest[:, :, weight.shape[2] // 2, weight.shape[3] // 2] = 0
    return rest


@pytest.mark.parametrize(
    ("taps", "dilations", "size", "channels", "channels_last", "dtype"),
    [
        # Rates below and above the map's size.
        ([(3, 3)] * 3, (1, 3, 8), (1, 4, 5), (16, 17), True, "float16"),
        ([(3, 1), (5, 3), (1, 1)], (2, 1, 1), (1, 3, 2), (19, 17), False, "float32"),
        # A pass of more stages than the ring has, and a tile of 128 pixels.
        ([(1, 3), (1, 3)], (1, 40), (3, 1, 50), (136, 16), True, "float16"),
        # More outputs than a tile holds.
        ([(1, 3)], (1,), (1, 1, 2), (16, 66), True, "float16"),
    ],
)
def test_sum_on_tensor_cores(emulated, taps, dilations, size, channels, channels_last, dtype):
    rng = np.random.default_rng(0)

    def operand(*shape):
        values = rng.uniform(-1, 1, shape).astype(np.float32)
        if dtype == "float32":  # as TF32, which the product rounds to
            return (values.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)
        return values.astype(dtype)

    (batch, *extent), (inputs, outputs) = size, channels
    x, bias = operand(batch, inputs, *extent), operand(outputs)
    weights = [operand(outputs, inputs, *t) for t in taps]
    centres = sum(w[:, :, w.shape[2] // 2, w.shape[3] // 2].astype(np.float64) for w in weights)
    centre = operand(outputs, inputs, 1, 1) * 0 + centres[:, :, None, None].astype(dtype)
    if dtype == "float32":
        centre = (centre.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)
    # The centre's own taps, were they multiplied, would show.
    for w in weights:
        w[:, :, w.shape[2] // 2, w.shape[3] // 2] = np.inf
    rest = [without_centre(w) for w in weights]
    expected = branches_reference.forward(x, [*rest, centre], None, (*dilations, 1), "sum")
    expected += bias.astype(np.float64)[:, None, None]
    for relu in (False, True):
        actual = emulated.multi_rate_sum(
            x, weights, centre, bias, list(dilations), relu, channels_last, 2
        )
        wanted = expected.clip(0) if relu else expected
        scale = max(1.0, np.abs(expected).max())
        tolerance = 2e-3 if dtype == "float16" else 2e-5
        np.testing.assert_allclose(actual, wanted, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("tile", [5, 128])
def test_union_tiles_cover_every_pixel_once(emulator_module, tile):
    batch, height, width = 3, 9, 11
    seen = np.zeros((batch, height, width), int)
    taps, dilations = [3, 5, 3], [2, 1, 20]
    for row, column, rows, columns, first, pixels in emulator_module.multi_rate_union_tiles(
        (batch, height, width), taps, dilations, tile
    ):
        assert 1 <= pixels <= tile
        for extent, start, count in ((height, row, rows), (width, column, columns)):
            # The same taps are live at all of a class.
            live = {
                tuple(0 <= at + (t - k // 2) * d < extent for t in range(k))
                for at in range(start, start + count)
                for k, d in [(3, 2)]
            }
            assert len(live) == 1
        for i in range(first, first + pixels):
            line, c = divmod(i, columns)
            n, r = divmod(line, rows)
            seen[n, row + r, column + c] += 1
    assert (seen == 1).all()


def test_union_of_too_many_borders_has_no_plan(emulator_module):
    assert not emulator_module.multi_rate_union_tiles((1, 99, 99), [21], [3], 128)
    assert not emulator_module.multi_rate_union_tiles((1, 99, 99), [3] * 9, [1] * 9, 128)
