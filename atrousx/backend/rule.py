"""The rule of "auto" on CPUs whose instruction set has measured limits: who is the faster one."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch

from .._library import core
from .._taps import live_share, output_size
from .precision import get_precision

_points = torch.ops.atrousx._atrous_conv2d_points.default

# The limits below were measured with these; elsewhere "auto" measures.
MEASURED_SETS = ("avx512", "avx2")


def has_limits() -> bool:
    """Whether this CPU's kernels are of an instruction set that the limits were measured with."""
    return core.cpu_isa in MEASURED_SETS


class Problem(NamedTuple):
    """What the rule looks at: of a convolution on the CPU, all that it was measured over."""

    dtype: torch.dtype
    channels_last: bool
    live: float  # the share of multiply-adds that touch data
    depthwise: bool
    outputs: int
    trains: bool  # whether gradients will be wanted
    packed: bool = False  # whether atrousx's kernels have the weight packed (optimize)
    channels: int = 512  # of the input, that an output sums over
    grouped: bool = False  # into groups of more than one channel
    # These matter to depthwise convolutions.
    dilated: bool = True
    strided: bool = False
    multiplied: bool = False  # whether a channel has several outputs
    taps: int = 9
    walks: bool = False  # whether depthwise/row_driver.h may serve it: by taps and channels
    clips: bool = False  # whether a ReLU follows, which atrousx's kernels apply as they store


# The least live fraction from which PyTorch's convolution is the faster one: the less padding there
# is to skip, the less skipping it gains. In the default layout; in channels_last, with gradients
# and without.
_CONTIGUOUS_LIMIT = 0.85
_CHANNELS_LAST_TRAINS_LIMIT, _CHANNELS_LAST_LIMIT = 0.97, 0.8
_PACKED_LIMIT = 0.9  # in both memory formats
_BFLOAT16_LIMIT = 0.9  # in both memory formats, with gradients and without
# Under so many outputs only dilated filters are worth packing a map for.
_FEW_OUTPUTS = 64
_FEW_OUTPUTS_LIMIT = 0.9
# Sums over fewer channels are too short for atrousx's products: in channels_last, where PyTorch has
# kernels for them; in channels_last without gradients; in groups.
_FEW_CHANNELS, _FEW_TO_READ, _FEW_OF_A_GROUP = 64, 512, 128
_GROUPED_LIMIT = 0.5
# Depthwise, of dilated filters in channels_last without gradients.
_DEPTHWISE_LIMITS = {torch.float32: 0.97, torch.bfloat16: 0.95}
# What a walk takes at a time of float32 or bfloat16, with AVX-512: fewer channels go another way.
_WALK_CHANNELS = 32
# From how many taps on a depthwise convolution is bound by multiply-adds, not by bytes.
_MANY_TAPS = 10


def torch_is_faster(problem: Problem) -> bool:
    """The rule of "auto" on the CPU, measured: see benchmarks/NOTES.md.

    float64 was not measured and stays with atrousx's kernels, as does float16, in which these were
    1.8 to 180 times as fast wherever they were measured.
    """
    if problem.dtype not in (torch.float32, torch.bfloat16):
        return False
    if problem.multiplied:
        reduced = problem.dtype == torch.bfloat16
        return not problem.trains or (problem.channels_last and not reduced)
    if problem.depthwise:
        return problem.channels_last and _torch_is_faster_depthwise(problem)
    if problem.channels_last and problem.channels < _FEW_CHANNELS:
        return True
    return problem.live >= _limit(problem)


def _limit(problem: Problem) -> float:
    """The least live fraction from which PyTorch's convolution is the faster one."""
    reduced = problem.dtype == torch.bfloat16
    if problem.grouped and (reduced or problem.channels_last or problem.channels < _FEW_OF_A_GROUP):
        return _GROUPED_LIMIT
    if reduced:
        return _BFLOAT16_LIMIT
    if problem.outputs < _FEW_OUTPUTS:
        return _FEW_OUTPUTS_LIMIT
    if problem.packed:
        return _PACKED_LIMIT
    if not problem.channels_last:
        return _CONTIGUOUS_LIMIT
    if problem.trains:
        return _CHANNELS_LAST_TRAINS_LIMIT
    return _CHANNELS_LAST_LIMIT if problem.channels >= _FEW_TO_READ else 0


def _torch_is_faster_depthwise(problem: Problem) -> bool:
    """The rule of depthwise convolutions in channels_last."""
    few = problem.taps < _MANY_TAPS
    if problem.strided or problem.walks:
        return False
    if problem.trains:
        # PyTorch leaves its fast path for the gradients of all others.
        return problem.dtype == torch.bfloat16 and few and not problem.dilated
    if problem.clips and few:
        return False
    return not problem.dilated or problem.live >= _DEPTHWISE_LIMITS[problem.dtype]


# Networks have few sizes, and to decide takes as long as a small convolution.
@functools.lru_cache(maxsize=1024)
def cpu_rule(
    dtype: torch.dtype,
    mixed: bool,
    channels_last: bool,
    size: torch.Size,
    weight: torch.Size,
    stride: tuple[int, int],
    sides: tuple[int, int, int, int],
    dilation: tuple[int, int],
    trains: bool,
    packed: bool,
    clips: bool,
    precision: str,
) -> bool:
    # Grad-weight takes fewer products wherever frozen filters do.
    frozen = packed or trains
    minimal = precision == "default" and not mixed
    if minimal and sizes_points(size, weight, stride, sides, dilation, frozen, dtype):
        return False
    map_size, taps = size[-2:], weight[2:]
    outputs = output_size(map_size, taps, stride, sides, dilation)
    return torch_is_faster(
        Problem(
            dtype=dtype,
            channels_last=channels_last,
            live=live_share(map_size, taps, outputs, stride, sides, dilation),
            depthwise=weight[1] == 1,
            outputs=weight[0],
            trains=trains,
            packed=packed,
            channels=weight[1],
            grouped=1 < weight[1] < size[-3],
            dilated=any(d > 1 and k > 1 for d, k in zip(dilation, taps, strict=True)),
            strided=max(stride) > 1,
            multiplied=weight[1] == 1 and weight[0] > size[-3] > 1,
            taps=taps.numel(),
            walks=taps[0] <= 3 and taps[1] == 3 and weight[0] == size[-3] >= _WALK_CHANNELS,
            clips=clips,
        )
    )


def current_points(*sizes: Any) -> tuple[int, ...]:
    """:func:`sizes_points`, none where the process forgoes minimal filtering."""
    return () if get_precision() == "highest" else sizes_points(*sizes)


@functools.lru_cache(maxsize=1024)
def sizes_points(
    size: torch.Size,
    weight: torch.Size,
    stride: tuple[int, int],
    sides: tuple[int, int, int, int],
    dilation: tuple[int, int],
    frozen: bool,
    dtype: torch.dtype,
) -> tuple[int, ...]:
    if weight[1] <= 1 or weight[2:] != (3, 3):
        return ()
    batched = size if len(size) == 4 else (1, *size)
    groups = batched[1] // weight[1]
    return tuple(_points(batched, weight, stride, sides, dilation, groups, frozen, dtype))
