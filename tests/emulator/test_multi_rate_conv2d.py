"""The summing passes of multi_rate_conv2d and the epilogue of the convolution, run on the host."""

from __future__ import annotations

import numpy as np
import pytest

from tests.reference import atrous_conv2d as reference

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
