"""Atrous convolution by its definition, in float64, one tap of one output pixel at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Pair = tuple[int, int]
Sides = tuple[int, int, int, int]


def _output_size(size: Pair, taps: Pair, stride: Pair, sides: Sides, dilation: Pair) -> Pair:
    rows, columns = (
        (size[a] + sides[a] + sides[a + 2] - dilation[a] * (taps[a] - 1) - 1) // stride[a] + 1
        for a in range(2)
    )
    return rows, columns


def _taps(
    size: Pair, output: Pair, taps: Pair, stride: Pair, sides: Sides, dilation: Pair
) -> Iterator[tuple[int, int, int, int, int, int]]:
    """Yields every (oh, ow, kh, kw, ih, iw) whose sample lies on the map."""
    for oh in range(output[0]):
        for ow in range(output[1]):
            for kh in range(taps[0]):
                for kw in range(taps[1]):
                    ih = oh * stride[0] - sides[0] + kh * dilation[0]
                    iw = ow * stride[1] - sides[1] + kw * dilation[1]
                    if 0 <= ih < size[0] and 0 <= iw < size[1]:
                        yield oh, ow, kh, kw, ih, iw


def _by_group(array: Array, groups: int) -> Array:
    channels = array.shape[1] // groups
    return array.astype(np.float64).reshape(len(array), groups, channels, *array.shape[2:])


def _filters(weight: Array, groups: int) -> Array:
    return weight.astype(np.float64).reshape(groups, len(weight) // groups, *weight.shape[1:])


def forward(
    input: Array,
    weight: Array,
    bias: Array | None,
    stride: Pair,
    sides: Sides,
    dilation: Pair,
    groups: int,
) -> Array:
    """``sides`` is the padding: top, left, bottom, right."""
    x, w = _by_group(input, groups), _filters(weight, groups)
    size, taps = (input.shape[2], input.shape[3]), (weight.shape[2], weight.shape[3])
    output = _output_size(size, taps, stride, sides, dilation)
    y = np.zeros((len(x), groups, w.shape[1], *output))
    for oh, ow, kh, kw, ih, iw in _taps(size, output, taps, stride, sides, dilation):
        y[..., oh, ow] += np.einsum("ngc,gkc->ngk", x[..., ih, iw], w[..., kh, kw])
    joined = y.reshape(len(x), len(weight), *output)
    return joined if bias is None else joined + bias[:, None, None]


def backward_input(
    grad_output: Array,
    weight: Array,
    size: Pair,
    stride: Pair,
    sides: Sides,
    dilation: Pair,
    groups: int,
) -> Array:
    g, w = _by_group(grad_output, groups), _filters(weight, groups)
    output, taps = (g.shape[3], g.shape[4]), (weight.shape[2], weight.shape[3])
    x = np.zeros((len(g), groups, w.shape[2], *size))
    for oh, ow, kh, kw, ih, iw in _taps(size, output, taps, stride, sides, dilation):
        x[..., ih, iw] += np.einsum("ngk,gkc->ngc", g[..., oh, ow], w[..., kh, kw])
    return x.reshape(len(g), groups * w.shape[2], *size)


def backward_weight(
    grad_output: Array,
    input: Array,
    taps: Pair,
    stride: Pair,
    sides: Sides,
    dilation: Pair,
    groups: int,
) -> Array:
    g, x = _by_group(grad_output, groups), _by_group(input, groups)
    output, size = (g.shape[3], g.shape[4]), (x.shape[3], x.shape[4])
    w = np.zeros((groups, g.shape[2], x.shape[2], *taps))
    for oh, ow, kh, kw, ih, iw in _taps(size, output, taps, stride, sides, dilation):
        w[..., kh, kw] += np.einsum("ngk,ngc->gkc", g[..., oh, ow], x[..., ih, iw])
    return w.reshape(groups * g.shape[2], *w.shape[2:])
