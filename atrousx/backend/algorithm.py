"""Asks an operator which algorithm atrousx's kernels use, once for each geometry."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .geometry import PASSES
from .precision import get_precision

_algorithm = torch.ops.atrousx._atrous_conv2d_algorithm.default

# Indexed by the numbers in csrc/atrous_conv2d/algorithm.h.
ROWS = "depthwise rows"
NAMES = ("dense product", "minimal filtering", "depthwise", "direct", "tensor cores", ROWS)


# A convolution: the sizes of input and weight, stride, sides and dilation. It is a plain tuple,
# because one is made at every call.
Conv = tuple[torch.Size, torch.Size, tuple[int, int], tuple[int, int, int, int], tuple[int, int]]


class Algorithm(NamedTuple):
    name: str
    points: tuple[int, ...] = ()  # of a transformed Winograd filter, in rows and columns


def ask(like: Tensor, pass_: str, *geometry: Any) -> Algorithm:
    """Returns the algorithm of a pass on the device and in the dtype of ``like``.

    ``geometry``: sizes of input and weight, stride, sides, dilation, groups; whether a tensor is
    channels_last; whether the weight is packed; whether TF32 is allowed.
    """
    number, *points = _algorithm(like, PASSES.index(pass_), *geometry)
    return Algorithm(NAMES[number], tuple(points))


# Cached because the operator takes as long as a small convolution, and networks have few sizes.
@functools.lru_cache(maxsize=1024)
def of_cpu_forward(
    dtype: torch.dtype,
    channels_last: bool,
    conv: Conv,
    frozen: bool,
    precision: str,
) -> Algorithm:
    """Returns the algorithm of a forward pass on the CPU.

    ``precision`` is only a key of the cache: the operator knows the precision of the process.
    """
    size, weight, *options = conv
    batched = size if len(size) == 4 else (1, *size)
    if 0 in weight or 0 in batched[1:]:
        return Algorithm(NAMES[0])  # nothing to multiply
    groups = batched[1] // weight[1]
    geometry = (batched, weight, *options, groups)
    like = torch.empty(0, dtype=dtype)
    return ask(like, PASSES[0], *geometry, channels_last, frozen, False)


def current_points(conv: Conv, frozen: bool, dtype: torch.dtype) -> tuple[int, ...]:
    """Returns the points of Winograd's minimal filtering, () where live taps are multiplied.

    ``frozen``: filters are transformed once, not at every call.
    """
    return of_cpu_forward(dtype, False, conv, frozen, get_precision()).points
