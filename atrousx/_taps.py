"""How a convolution's taps fall on its map: the output's size, the share that touches data."""

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
        live = 0
        for tap in range(taps[axis]):
            shift = sides[axis] - tap * dilations[axis]
            first = max(0, -(-shift // strides[axis]))
            last = min(outputs[axis] - 1, (sizes[axis] - 1 + shift) // strides[axis])
            live += max(0, last - first + 1)
        share *= live / (taps[axis] * outputs[axis])
    return share


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
