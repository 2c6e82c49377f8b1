"""The rule of "auto" on CPUs: features of a convolution, held against measured limits."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .._library import core
from .._taps import live_share, output_size
from .algorithm import ROWS, of_cpu_forward

FOLDER = Path(__file__).with_name("limits")
MEASURED_DTYPES = (torch.float32, torch.bfloat16)
# What a convolution is computed for: its gradients too, a result, a result by a weight that
# optimize has packed, and the same with a ReLU that atrousx's kernels apply as they store.
TRAINS, INFERS, PACKED, PACKED_RELU = "trains", "infers", "packed", "packed, ReLU"


class Features(NamedTuple):
    """What the rule looks at."""

    dtype: torch.dtype
    channels_last: bool
    live: float  # the share of multiply-adds that touch data
    use: str
    channels: int  # that an output sums over; 1: depthwise
    outputs: int
    grouped: bool = False  # into groups of more than one channel
    # Of a depthwise convolution:
    multiplied: bool = False  # a channel has several outputs
    by_rows: bool = False  # the kernel of whole rows computes it (csrc, depthwise/row_driver.h)
    strided: bool = False
    dilated: bool = True
    taps: int = 9


class Limits(NamedTuple):
    """What tune.py has measured with an instruction set.

    ``torch_from``: by kind, dtype with memory format, and use, the least share of live
    multiply-adds from which PyTorch's convolution is the faster one: the less padding there is to
    skip, the less skipping it gains. 0 is always, None never. A number in the place of a table
    holds for all that it would list.
    """

    measured: dict[str, Any]  # with which CPU, how many threads, which versions
    bounds: dict[str, int]  # between few and many
    torch_from: dict[str, Any]


@functools.cache
def limits_of(instruction_set: str) -> Limits | None:
    """None where nothing was measured with an instruction set."""
    file = FOLDER / f"{instruction_set}.json"
    return Limits(**json.loads(file.read_text())) if file.is_file() else None


def current_limits() -> Limits | None:
    """Of this CPU's kernels. Where there are none, "auto" measures."""
    return limits_of(core.cpu_isa)


def torch_is_faster(features: Features, limits: Limits) -> bool:
    """The rule. Dtypes that were not measured stay with atrousx's kernels."""
    if features.dtype not in MEASURED_DTYPES:
        return False
    limit = limit_at(limits, line_of(features, limits.bounds))
    return limit is not None and features.live >= limit


def limit_at(limits: Limits, line: tuple[str, str, str]) -> float | None:
    """KeyError where a table lacks a line: files are tested to have them all."""
    found: Any = limits.torch_from
    for name in line:
        found = found[name] if isinstance(found, dict) else found
    return None if found is None else float(found)


def line_of(features: Features, bounds: dict[str, int]) -> tuple[str, str, str]:
    """Where a convolution's limit is: its kind, its dtype and memory format, its use."""
    layout = "channels_last" if features.channels_last else "contiguous"
    depthwise = features.channels == 1
    kind = _depthwise_kind(features, bounds) if depthwise else _product_kind(features, bounds)
    # All others have one limit, with a ReLU or without.
    plain = features.use == PACKED_RELU and not kind.startswith("depthwise")
    use = PACKED if plain else features.use
    return kind, f"{str(features.dtype)[6:]} {layout}", use


def _depthwise_kind(features: Features, bounds: dict[str, int]) -> str:
    if features.multiplied:
        return "channel multiplier"
    if features.by_rows or features.strided:
        return "depthwise, by rows" if features.by_rows else "depthwise, strided"
    kind = "depthwise, dilated" if features.dilated else "depthwise, undilated"
    # Of many taps it is bound by multiply-adds, not by bytes.
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
    use: str,
    precision: str,
) -> bool:
    limits = current_limits()
    if limits is None:
        return False
    conv = (size, weight, stride, sides, dilation)
    # Grad-weight takes fewer products wherever frozen filters do.
    algorithm = of_cpu_forward(dtype, channels_last, *conv, use != INFERS, precision)
    if algorithm.points and not mixed:
        return False
    return torch_is_faster(features_of(dtype, channels_last, conv, use, algorithm.name), limits)


def features_of(
    dtype: torch.dtype, channels_last: bool, conv: tuple[Any, ...], use: str, algorithm: str
) -> Features:
    """``conv``: the sizes of input and weight, stride, sides, dilation."""
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
