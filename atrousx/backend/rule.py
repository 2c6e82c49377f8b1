"""The rule of "auto" on CPUs: it compares features of a convolution with measured limits."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .._library import core
from .._taps import live_share, output_size
from .algorithm import ROWS, Conv, of_cpu_forward

FOLDER = Path(__file__).with_name("limits")
MEASURED_DTYPES = (torch.float32, torch.bfloat16)
# What a convolution is used for: training (forward and gradients), inference, inference with a
# weight that `optimize` has packed, and the last with a ReLU in the epilogue of atrousx's kernels.
TRAINS, INFERS, PACKED, PACKED_RELU = "trains", "infers", "packed", "packed, ReLU"


class Features(NamedTuple):
    """The properties of a convolution that the rule depends on."""

    dtype: torch.dtype
    channels_last: bool
    live: float  # the share of multiply-adds that touch data
    use: str
    channels: int  # the input channels that one output sums; 1: depthwise
    outputs: int
    grouped: bool = False  # there are several groups of more than one channel
    # The rest describes depthwise convolutions:
    multiplied: bool = False  # each channel has several outputs
    by_rows: bool = False  # the kernel for whole rows computes it (csrc, depthwise/row_driver.h)
    strided: bool = False
    dilated: bool = True
    taps: int = 9


class Limits(NamedTuple):
    """The limits that ``benchmarks/tune.py`` has measured with one instruction set.

    ``torch_from`` is a table by kind, then by dtype with memory format, then by use. Its entries
    are shares of live multiply-adds. PyTorch's convolution is faster from that share on: with less
    padding, atrousx gains less by skipping it. 0 means that PyTorch is always faster, None that it
    never is. A number instead of a nested table holds for all entries of that table.
    """

    measured: dict[str, Any]  # the CPU, number of threads and versions of the measurement
    bounds: dict[str, int]  # the numbers that separate few from many
    torch_from: dict[str, Any]


@functools.cache
def limits_of(instruction_set: str) -> Limits | None:
    """Returns the limits of an instruction set, or None if nothing was measured with it."""
    file = FOLDER / f"{instruction_set}.json"
    return Limits(**json.loads(file.read_text())) if file.is_file() else None


def current_limits() -> Limits | None:
    """Returns the limits of this CPU's kernels; if there are none, "auto" measures."""
    return limits_of(core.cpu_isa)


def torch_is_faster(features: Features, limits: Limits) -> bool:
    """Whether the rule chooses PyTorch; dtypes that were not measured use atrousx's kernels."""
    if features.dtype not in MEASURED_DTYPES:
        return False
    limit = limit_at(limits, line_of(features, limits.bounds))
    return limit is not None and features.live >= limit


def limit_at(limits: Limits, line: tuple[str, str, str]) -> float | None:
    """Returns the limit at a line of the tables.

    A missing line raises KeyError; a test checks that the files have all lines.
    """
    found: Any = limits.torch_from
    for name in line:
        found = found[name] if isinstance(found, dict) else found
    return None if found is None else float(found)


def line_of(features: Features, bounds: dict[str, int]) -> tuple[str, str, str]:
    """Returns where the limit of a convolution stands: kind, dtype with memory format, use."""
    layout = "channels_last" if features.channels_last else "contiguous"
    depthwise = features.channels == 1
    kind = _depthwise_kind(features, bounds) if depthwise else _product_kind(features, bounds)
    # Only depthwise convolutions have a separate limit for a ReLU.
    plain = features.use == PACKED_RELU and not kind.startswith("depthwise")
    use = PACKED if plain else features.use
    return kind, f"{str(features.dtype)[6:]} {layout}", use


def _depthwise_kind(features: Features, bounds: dict[str, int]) -> str:
    if features.multiplied:
        return "channel multiplier"
    if features.by_rows or features.strided:
        return "depthwise, by rows" if features.by_rows else "depthwise, strided"
    kind = "depthwise, dilated" if features.dilated else "depthwise, undilated"
    # With many taps the time depends on multiply-adds, not on memory traffic.
    return f"{kind}, many taps" if features.taps >= bounds["many_taps"] else kind


def _product_kind(features: Features, bounds: dict[str, int]) -> str:
    few = "few channels" if features.channels < bounds["few_channels"] else ""
    if features.grouped:
        many = features.channels >= bounds["many_channels_of_a_group"]
        return f"groups of {few or ('many channels' if many else 'some channels')}"
    if features.outputs < bounds["few_outputs"]:
        return f"{few} to few outputs" if few else "few outputs"
    many = features.channels >= bounds["many_channels"]
    return few or ("many channels" if many else "some channels")


# Cached because a decision takes as long as a small convolution, and networks have few sizes.
@functools.lru_cache(maxsize=1024)
def cpu_rule(
    dtype: torch.dtype,
    mixed: bool,
    channels_last: bool,
    conv: Conv,
    use: str,
    precision: str,
) -> bool:
    limits = current_limits()
    if limits is None:
        return False
    # Training asks as for frozen filters: grad-weight uses Winograd wherever frozen filters do.
    algorithm = of_cpu_forward(dtype, channels_last, conv, use != INFERS, precision)
    if algorithm.points and not mixed:
        return False
    return torch_is_faster(features_of(dtype, channels_last, conv, use, algorithm.name), limits)


def features_of(
    dtype: torch.dtype, channels_last: bool, conv: Conv, use: str, algorithm: str
) -> Features:
    """Returns what the rule looks at."""
    size, weight, stride, sides, dilation = conv
    outputs, channels, *taps = weight
    extents = output_size(size[-2:], taps, stride, sides, dilation)
    return Features(
        dtype=dtype,
        channels_last=channels_last,
        live=live_share(size[-2:], taps, extents, stride, sides, dilation),
        use=use,
        channels=channels,
        outputs=outputs,
        grouped=1 < channels < size[-3],
        multiplied=channels == 1 and outputs > size[-3] > 1,
        by_rows=algorithm == ROWS,
        strided=max(stride) > 1,
        dilated=any(d > 1 and k > 1 for d, k in zip(dilation, taps, strict=True)),
        taps=taps[0] * taps[1],
    )
