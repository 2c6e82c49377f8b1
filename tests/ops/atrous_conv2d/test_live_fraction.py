"""ops.live_fraction against a count of live taps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from atrousx.ops import live_fraction
from tests.optional import given, st


@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    taps=st.integers(1, 5),
    stride=st.integers(1, 3),
    padding=st.integers(0, 20),
    dilation=st.integers(1, 18),
)
def test_live_fraction_counts(size, taps, stride, padding, dilation):
    if min(size) + 2 * padding <= dilation * (taps - 1):
        with pytest.raises(ValueError, match="output would be empty"):
            live_fraction(size, taps, stride, padding, dilation)
        return
    # A convolution of ones with ones counts the live taps.
    ones = torch.ones(1, 1, *size, dtype=torch.float64)
    counts = F.conv2d(ones, torch.ones(1, 1, taps, taps).double(), None, stride, padding, dilation)
    expected = counts.sum().item() / (taps**2 * counts.numel())
    assert live_fraction(size, taps, stride, padding, dilation) == pytest.approx(expected)


def test_live_fraction_of_deeplab():
    assert live_fraction((33, 33), 3, padding=18, dilation=18) == pytest.approx((63 / 99) ** 2)
    assert live_fraction((33, 33), 1) == 1
