"""Describes a convolution that a user gives to ``explain`` as a layer or as sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor, nn

from ..ops._check import FLOATING
from ..ops._geometry import Padding, positive_pair, sides_of
from .choice import allows_tf32
from .geometry import (
    PASSES,
    Geometry,
    Operands,
    Options,
    device_name,
    geometry_of,
    in_room,
    room_like,
)


class ConvOptions(TypedDict, total=False):
    """Options of ``explain`` for a convolution or an input that is given by its size."""

    stride: int | Sequence[int]
    padding: Padding
    dilation: int | Sequence[int]
    groups: int
    dtype: torch.dtype
    device: torch.device | str
    channels_last: bool


class Problem(NamedTuple):
    """A convolution, described by tensors without memory."""

    input: Tensor
    weight: Tensor
    options: Options
    device: torch.device
    frozen: bool

    @property
    def dtype(self) -> torch.dtype:
        return self.input.dtype

    def geometry(self, pass_: str) -> Geometry:
        grad = None
        geometry = geometry_of(pass_, Operands(self.input, self.weight), self.options)
        if pass_ != PASSES[0]:
            last = torch.channels_last if any(geometry.channels_last) else torch.contiguous_format
            grad = torch.empty(
                [max(0, extent) for extent in geometry.output], device="meta", memory_format=last
            )
            operands = Operands(self.input, self.weight, grad_output=grad)
            geometry = geometry_of(pass_, operands, self.options)
        return geometry._replace(device=device_name(self.device))


def problem_of(
    layer: nn.Conv2d | Sequence[int], input: Tensor | Sequence[int], options: ConvOptions
) -> Problem:
    unknown = set(options) - set(ConvOptions.__annotations__)
    if unknown:
        raise TypeError(f"explain has no option {sorted(unknown)[0]!r}")
    said = set() if isinstance(input, Tensor) else {"dtype", "device", "channels_last"}
    if isinstance(layer, nn.Module) and not isinstance(layer, nn.Conv2d):
        raise TypeError(
            "layer must be a torch.nn.Conv2d or the size of a weight, got "
            f"{type(layer).__name__}; only convolutions are chosen: other operators run atrousx's "
            "kernels wherever there are any"
        )
    if not isinstance(layer, nn.Conv2d):
        said |= {"stride", "padding", "dilation", "groups"}
    for name in options:
        if name not in said:
            raise TypeError(f"{name} must not be given: the layer or the input says it already")
    if isinstance(layer, nn.Conv2d):
        padding: Any = layer.padding if layer.padding_mode == "zeros" else 0
        conv: ConvOptions = {
            "stride": layer.stride,
            "padding": padding,
            "dilation": layer.dilation,
            "groups": layer.groups,
            "dtype": layer.weight.dtype,
            "device": layer.weight.device,
        }
        options = {**conv, **options}
        weight = torch.empty_like(layer.weight, device="meta")
    else:
        weight = torch.empty(_sizes("layer", layer, 4), device="meta")
    groups = options.get("groups", 1)
    given = _input(input, options, weight.shape[1] * groups)
    strides = positive_pair("stride", options.get("stride", 1))
    dilations = positive_pair("dilation", options.get("dilation", 1))
    sides = sides_of(options.get("padding", 0), weight.shape[2:], strides, dilations)
    device = input.device if isinstance(input, Tensor) else _device(options)
    if given.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups:
        raise ValueError(
            f"a weight of size {tuple(weight.shape)} with groups={groups} does not fit an input of "
            f"size {tuple(given.shape)}"
        )
    tf32 = allows_tf32(torch.empty(0, dtype=given.dtype, device=device))
    conv_options = Options(strides, sides, dilations, groups, tf32)
    frozen = isinstance(layer, nn.Conv2d) and hasattr(layer, "packed")
    return Problem(given, weight, conv_options, device, frozen)


def _device(options: ConvOptions) -> torch.device:
    return torch.device(options.get("device", "cpu"))


def _input(input: Tensor | Sequence[int], options: ConvOptions, channels: int) -> Tensor:
    """Returns a 4-dimensional meta tensor with the strides and alignment of the input."""
    if isinstance(input, Tensor):
        given = in_room(room_like(input, torch.device("meta")), input)
        return given if given.dim() == 4 else given[None]
    sizes = tuple(input) if isinstance(input, Sequence) else ()
    if len(sizes) == 2:
        sizes = (1, channels, *sizes)
    dtype = options.get("dtype", torch.float32)
    if dtype not in FLOATING:
        raise TypeError(f"dtype must be float32, float64, float16 or bfloat16, got {dtype}")
    last = torch.channels_last if options.get("channels_last") else torch.contiguous_format
    size = _sizes("input", sizes, 4)
    return torch.empty(size, dtype=dtype, device="meta", memory_format=last)


def _sizes(name: str, value: Sequence[int], count: int) -> tuple[int, ...]:
    sizes = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else ()
    if len(sizes) != count or not all(isinstance(n, int) and n > 0 for n in sizes):
        raise ValueError(f"{name} must be {count} positive ints, got {value!r}")
    return sizes
