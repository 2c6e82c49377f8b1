"""The geometry of a convolution's pass (device, sizes, formats), which is the key of a choice."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._taps import output_size
from .precision import get_precision

FORWARD, GRAD_INPUT, GRAD_WEIGHT, FUSED = "forward", "grad-input", "grad-weight", "fused forward"
PASSES = (FORWARD, GRAD_INPUT, GRAD_WEIGHT)
# Types of real tensors; other subclasses may trace the call or have no memory.
PLAIN = (Tensor, nn.Parameter)


class Options(NamedTuple):
    """The arguments that the operators take after their tensors, in this order."""

    stride: tuple[int, int]
    sides: tuple[int, int, int, int]
    dilation: tuple[int, int]
    groups: int
    allow_tf32: bool


# The alignment of vector loads in bytes.
_ALIGNMENT = 16


class View(NamedTuple):
    """An operand whose memory layout differs from a new tensor's."""

    place: int  # its index in Operands
    offset: int  # its address modulo 16, in bytes
    strides: tuple[int, ...] = ()  # if it has gaps, or several elements share memory

    @property
    def kind(self) -> View:
        """The view without what depends on the size of the map."""
        return self._replace(strides=tuple(min(stride, 1) for stride in self.strides))


class Geometry(NamedTuple):
    """Everything that a choice depends on."""

    pass_: str
    device: str  # a GPU's name, or "cpu" with the number of threads and the precision
    dtype: str
    input: tuple[int, int, int, int]  # [N, C, H, W]
    weight: tuple[int, int, int, int]  # [K, C / groups, KH, KW]
    options: Options
    channels_last: tuple[bool, ...]  # for input, weight and, in a gradient, grad_output
    ending: str = ""  # what the epilogue of a fused forward does: "residual", "relu" or both
    views: tuple[View, ...] = ()

    @property
    def layer(self) -> Geometry:
        """The geometry without batch and size of the map; it is equal for all sizes of a layer."""
        views = tuple(view.kind for view in self.views)
        return self._replace(input=(0, self.input[1], 0, 0), views=views)

    @property
    def pixels(self) -> int:
        """The number of input pixels in the batch."""
        batch, _, height, width = self.input
        return batch * height * width

    @property
    def output(self) -> tuple[int, int, int, int]:
        stride, sides, dilation, *_ = self.options
        rows, columns = output_size(self.input[2:], self.weight[2:], stride, sides, dilation)
        return (self.input[0], self.weight[0], rows, columns)

    @property
    def terms(self) -> int:
        """The number of products that one element of the result sums."""
        if self.pass_ == GRAD_WEIGHT:
            batch, _, rows, columns = self.output
            return batch * rows * columns
        width = self.weight[0] // self.options.groups
        channels = width if self.pass_ == GRAD_INPUT else self.weight[1]
        return channels * math.prod(self.weight[2:])

    def text(self) -> str:
        return json.dumps(self)

    @staticmethod
    def parse(text: str) -> Geometry:
        """Reads what :meth:`text` wrote; anything else raises ValueError, TypeError or KeyError."""
        pass_, device, dtype, input, weight, options, formats, ending, views = json.loads(text)
        stride, sides, dilation, groups, allow_tf32 = options
        lists = (input, weight, stride, sides, dilation)
        if [len(numbers) for numbers in lists] != [4, 4, 2, 4, 2] or pass_ not in (*PASSES, FUSED):
            raise ValueError(f"not a geometry: {text}")
        known = Options(tuple(stride), tuple(sides), tuple(dilation), groups, allow_tf32)
        sizes = (tuple(input), tuple(weight))
        known_views = tuple(View(place, offset, tuple(strides)) for place, offset, strides in views)
        return Geometry(pass_, device, dtype, *sizes, known, tuple(formats), ending, known_views)

    def words(self) -> str:
        outputs, channels, *taps = self.weight
        stride, sides, dilation, groups, _ = self.options
        ending = f" with {self.ending}" if self.ending else ""
        batch, _, height, width = self.input
        return (
            f"{self.pass_}{ending} of a {taps[0]}x{taps[1]} convolution, {channels * groups} to "
            f"{outputs} channels, groups {groups}, stride {stride}, padding {sides}, dilation "
            f"{dilation}, on {batch} x {height}x{width}"
            f"{' channels_last' if self.channels_last[0] else ''}, {self.dtype}, {self.device}"
            f"{''.join(map(_view_words, self.views))}"
        )


def _view_words(view: View) -> str:
    strides = f" of strides {view.strides}" if view.strides else ""
    offset = f" {view.offset} bytes behind a multiple of {_ALIGNMENT}" if view.offset else ""
    return f", {Operands._fields[view.place]}{strides}{offset}"


def is_channels_last(tensor: Tensor) -> bool:
    """Whether a tensor is channels_last, by the rule of PyTorch's suggest_memory_format.

    That function itself takes as long as a small convolution.
    """
    return tensor.dim() == 4 and _is_channels_last(tensor.shape, tensor.stride())


def _is_channels_last(size: Sequence[int], strides: Sequence[int]) -> bool:
    _, channels, height, width = size
    n, c, h, w = strides
    return c > 0 and c * channels <= w and w * width <= h and h * height <= n != c


class Operands(NamedTuple):
    """The tensors of a pass. Gradients have a ``grad_output``, a fused forward a ``residual``."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None = None
    grad_output: Tensor | None = None
    residual: Tensor | None = None


def geometry_of(pass_: str, operands: Operands, options: Options, ending: str = "") -> Geometry:
    input, weight, _, grad, _ = operands
    given = (input, weight) if grad is None else (input, weight, grad)
    views = (_view_of(place, t) for place, t in enumerate(operands) if t is not None)
    formats = (_is_channels_last(_hints(t.shape), _hints(t.stride())) for t in given)
    return Geometry(
        pass_,
        device_name(input.device),
        str(input.dtype)[6:],
        _hints(input.shape),
        _hints(weight.shape),
        options,
        tuple(formats),
        ending,
        tuple(view for view in views if view is not None),
    )


def alignment(tensor: Tensor) -> int:
    """Returns the address of a tensor modulo 16, in bytes."""
    return tensor.data_ptr() % _ALIGNMENT


def room_like(tensor: Tensor, device: torch.device) -> Tensor:
    """Allocates memory in which :func:`in_room` can place a tensor laid out like this one."""
    span = 0
    if tensor.numel() > 0:
        steps = zip(tensor.shape, tensor.stride(), strict=True)
        span = 1 + sum((extent - 1) * stride for extent, stride in steps)
    return torch.empty(_first(tensor) + span, dtype=tensor.dtype, device=device)


def in_room(room: Tensor, tensor: Tensor) -> Tensor:
    return room.as_strided(tensor.shape, tensor.stride(), _first(tensor))


def _first(tensor: Tensor) -> int:
    return alignment(tensor) // tensor.itemsize


def _view_of(place: int, tensor: Tensor) -> View | None:
    size, strides = _hints(tensor.shape), _hints(tensor.stride())
    dense = math.prod(size) == 0 or any(_is_dense(size, strides, order) for order in _orders(size))
    if type(tensor) in PLAIN and not tensor.is_meta:
        offset = alignment(tensor)
    else:  # there is no memory; PyTorch aligns its allocations to multiples of 16 bytes
        (first,) = _hints((tensor.storage_offset(),))
        offset = first * tensor.itemsize % _ALIGNMENT
    return None if dense and offset == 0 else View(place, offset, () if dense else strides)


def _orders(size: Sequence[int]) -> Sequence[Sequence[int]]:
    """Returns the orders of dimensions that new tensors have in memory, innermost first."""
    return ((3, 2, 1, 0), (1, 3, 2, 0)) if len(size) == 4 else (range(len(size))[::-1],)


def _is_dense(size: Sequence[int], strides: Sequence[int], order: Sequence[int]) -> bool:
    expected = 1
    for dimension in order:
        if size[dimension] != 1 and strides[dimension] != expected:
            return False
        expected *= size[dimension]
    return True


def device_name(device: torch.device) -> str:
    """Returns a name that is equal for devices with the same choices.

    Equal GPUs have one name. The CPU's name contains the number of threads and the precision,
    because both change which kernels run and how fast they are.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    threads = torch.get_num_threads()
    exact = " at the highest precision" if get_precision() == "highest" else ""
    return f"cpu with {threads} thread{'s'[: threads > 1]}{exact}"


def _hints(extents: Sequence[int | torch.SymInt]) -> Any:
    """Returns sizes as ints. Of symbolic ones it takes the hint, which adds no guard."""
    return tuple(
        (extent.node.hint if extent.node.has_hint() else 0)
        if isinstance(extent, torch.SymInt)
        else extent
        for extent in extents
    )
