"""Computes the output size of a convolution and the share of its taps that touch data."""

from __future__ import annotations

from collections.abc import Sequence


def live_share(
    sizes: Sequence[int],
    taps: Sequence[int],
    outputs: Sequence[int],
    strides: Sequence[int],
    sides: Sequence[int],
    dilations: Sequence[int],
) -> float:
    share = 1.0
    for axis in range(2):
        first = sides[axis] - 1  # position in the padded map, just before the map itself
        line = (taps[axis], dilations[axis], strides[axis], outputs[axis])
        live = _begun(first + sizes[axis], *line) - _begun(first, *line)
        share *= live / (taps[axis] * outputs[axis])
    return share


def _begun(last: int, taps: int, dilation: int, stride: int, outputs: int) -> int:
    """Counts the pairs of a tap k and an output o with ``o * stride + k * dilation <= last``.

    Taps form three runs: those that count all outputs, those that count some, and the rest. The
    time does not grow with the number of taps.
    """
    every = min(max((last - (outputs - 1) * stride) // dilation + 1, 0), taps)
    some = min(max(last // dilation + 1, 0), taps)
    count = some - every
    if count <= 0:
        return every * outputs
    least = last - (some - 1) * dilation
    return every * outputs + count + _floor_sum(count, dilation, least, stride)


def _floor_sum(count: int, step: int, first: int, divisor: int) -> int:
    """Returns the sum of ``(first + i * step) // divisor`` over ``i < count``.

    This counts lattice points under a line. The integer parts of slope and height are summed by a
    formula. The rest is counted with the axes exchanged, as in Euclid's algorithm.
    """
    total = 0
    while count > 0:
        total += count * (count - 1) // 2 * (step // divisor) + count * (first // divisor)
        step, first = step % divisor, first % divisor
        count, first = divmod(first + step * count, divisor)
        step, divisor = divisor, step
    return total


def output_size(
    size: Sequence[int],
    taps: Sequence[int],
    stride: Sequence[int],
    sides: Sequence[int],
    dilation: Sequence[int],
) -> list[int]:
    return [
        (size[a] + sides[a] + sides[a + 2] - dilation[a] * (taps[a] - 1) - 1) // stride[a] + 1
        for a in range(2)
    ]
