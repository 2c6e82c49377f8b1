"""Cases of atrous_conv2d, its backward operators, and the operators that inference calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...backend.precision import get_precision
from ..devices import Device
from .case import ALL, MAPS, Case, Tensors, gradients_of

_ops = torch.ops.atrousx
# The pixels in a tile of the tensor-core kernels, and the number of tiles per multiprocessor from
# which on they use wide tiles of 128 outputs.
_TILE, _TILES_OF_WIDE = 128, 4


class Geometry(NamedTuple):
    batch: int
    channels: int
    outputs: int
    groups: int
    size: tuple[int, int]
    taps: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    @property
    def options(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]:
        """The options of the operators; padding is top, left, bottom, right."""
        return self.stride, (*self.padding, *self.padding), self.dilation, self.groups

    @property
    def fan_in(self) -> int:
        return self.channels // self.groups * self.taps[0] * self.taps[1]

    def torch(self, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        return F.conv2d(x, w, b, self.stride, self.padding, self.dilation, self.groups)

    def make(self) -> Tensors:
        """Returns input, weight, bias, gradient of the output, and residual."""
        x = torch.randn(self.batch, self.channels, *self.size).double()
        w = torch.randn(self.outputs, self.channels // self.groups, *self.taps).double()
        w /= max(1, self.fan_in) ** 0.5
        b = torch.randn(self.outputs).double()
        shape = self.torch(x[:1].to("meta"), w.to("meta")).shape[1:]
        grad, residual = (torch.randn(self.batch, *shape).double() for _ in range(2))
        return x, w, b, grad, residual


QUICK = {
    "3x3 rate 2, odd map": Geometry(2, 24, 40, 1, (7, 9), (3, 3), (1, 1), (2, 2), (2, 2)),
    "odd channels, 21 outputs": Geometry(1, 19, 21, 1, (9, 7), (3, 3), (1, 1), (4, 4), (4, 4)),
    "stem, 7x7 stride 2": Geometry(1, 3, 64, 1, (13, 11), (7, 7), (2, 2), (3, 3)),
    "depthwise rate 2": Geometry(2, 19, 19, 19, (9, 8), (3, 3), (1, 1), (2, 2), (2, 2)),
    "empty batch": Geometry(0, 16, 24, 1, (5, 5), (3, 3), (1, 1), (1, 1)),
}
FULL = {
    "3x3 rate 12 on 33x31": Geometry(1, 64, 72, 1, (33, 31), (3, 3), (1, 1), (12, 12), (12, 12)),
    "3x3, 512 channels": Geometry(1, 512, 40, 1, (11, 9), (3, 3), (1, 1), (1, 1)),
    "pointwise, strided": Geometry(2, 36, 68, 1, (15, 17), (1, 1), (2, 2)),
    "4x3 strided, unequal axes": Geometry(1, 20, 33, 1, (31, 28), (4, 3), (3, 2), (2, 5), (2, 3)),
    "stem, 7x7 stride 2, larger": Geometry(2, 3, 64, 1, (65, 61), (7, 7), (2, 2), (3, 3)),
    "7x7 rate 4": Geometry(1, 32, 48, 1, (21, 21), (7, 7), (1, 1), (12, 12), (4, 4)),
    "groups": Geometry(2, 64, 96, 2, (13, 11), (3, 2), (1, 2), (2, 1), (2, 1)),
    "narrow groups": Geometry(1, 8, 12, 4, (7, 6), (3, 3), (2, 1), (2, 3), (1, 3)),
    "depthwise rate 4, wide rows": Geometry(
        1, 40, 40, 40, (20, 85), (3, 3), (1, 1), (4, 4), (4, 4)
    ),
    "depthwise, stride 2": Geometry(2, 35, 35, 35, (19, 38), (3, 3), (2, 2), (1, 1)),
    "depthwise, multiplied": Geometry(1, 6, 18, 6, (9, 10), (3, 3), (1, 2), (1, 1)),
    "one output": Geometry(1, 30, 1, 1, (15, 15), (3, 3), (1, 1), (2, 2), (2, 2)),
    "pixels without a live tap": Geometry(1, 16, 16, 1, (1, 3), (2, 2), (1, 1), (5, 4), (3, 2)),
    "Winograd, phases of 11": Geometry(1, 64, 96, 1, (33, 33), (3, 3), (1, 1), (3, 3), (3, 3)),
}


def wide(device: Device) -> Geometry:
    """Returns a geometry with enough pixels for wide tiles of the tensor-core kernels."""
    pixels = max(1, device.multiprocessors) * _TILE * _TILES_OF_WIDE
    side = int(pixels**0.5) + 1 if device.multiprocessors else 41
    return Geometry(1, 72, 72, 1, (side, side), (1, 3), (1, 1), (0, 1))


def geometries(device: Device, quick: bool) -> dict[str, Geometry]:
    return QUICK if quick else {**QUICK, **FULL, "wide tile, 128 outputs": wide(device)}


def cases(device: Device, quick: bool) -> Iterator[Case]:
    for name, geometry in geometries(device, quick).items():
        yield from _cases(name, geometry)
    yield from _packed_cases(quick)


def _cases(name: str, g: Geometry) -> Iterator[Case]:
    def forward(t: Tensors, tf32: bool = False) -> Tensors:
        return (_ops.atrous_conv2d(*t[:3], *g.options, tf32),)

    def torch_forward(t: Tensors) -> Tensors:
        return (g.torch(*t[:3]),)

    def gradients(t: Tensors, tf32: bool) -> Tensors:
        return gradients_of(lambda leaves: forward(leaves, tf32), t, t[3], (0, 1, 2))

    def torch_gradients(t: Tensors) -> Tensors:
        return gradients_of(torch_forward, t, t[3], (0, 1, 2))

    def fused(t: Tensors, tf32: bool) -> Tensors:
        x, w, b, _, residual = t
        return (_ops._atrous_conv2d_fused(x, w, b, residual, True, *g.options, tf32, None),)

    def torch_fused(t: Tensors) -> Tensors:
        return ((g.torch(*t[:3]) + t[4]).relu(),)

    def to_input(t: Tensors, tf32: bool) -> Tensors:
        grad = _ops._atrous_conv2d_backward_input(t[3], t[1], t[0].shape, *g.options, tf32)
        return (grad,)

    def to_weight(t: Tensors, tf32: bool) -> Tensors:
        grad = _ops._atrous_conv2d_backward_weight(t[3], t[0], t[1].shape, *g.options, tf32)
        return (grad,)

    sums = g.batch * (g.size[0] // g.stride[0] + 1) * (g.size[1] // g.stride[1] + 1)
    to_outputs = g.outputs // g.groups * g.taps[0] * g.taps[1]
    for operator, pass_name, run, twin, length in (
        ("atrous_conv2d", "forward", forward, torch_forward, g.fan_in),
        ("atrous_conv2d", "gradients", gradients, torch_gradients, max(sums, to_outputs)),
        ("_atrous_conv2d_fused", "forward", fused, torch_fused, g.fan_in + 1),
        ("_atrous_conv2d_backward_input", "forward", to_input, _one_gradient(g, 0), to_outputs),
        ("_atrous_conv2d_backward_weight", "forward", to_weight, _one_gradient(g, 1), sums),
    ):
        yield Case(operator, pass_name, name, g.make, run, twin, length, ALL, MAPS)


def _one_gradient(g: Geometry, of: int) -> Callable[[Tensors], Tensors]:
    def twin(t: Tensors) -> Tensors:
        return gradients_of(lambda leaves: (g.torch(*leaves[:2]),), t, t[3], (of,))

    return twin


def _packed_cases(quick: bool) -> Iterator[Case]:
    """Yields cases of packed weights and of operators that return no map.

    The format of a packed weight depends on the device, so results that are computed with it are
    compared.
    """
    name = "odd channels, 21 outputs"
    g = QUICK[name] if quick else FULL["Winograd, phases of 11"]

    def packed(t: Tensors, tf32: bool) -> Tensors:
        x, w, b = t[:3]
        form = _ops._atrous_conv2d_pack_weight(w, g.groups, [])
        return (_ops._atrous_conv2d_fused(x, w, b, None, True, *g.options, tf32, form),)

    def transformed(t: Tensors, tf32: bool) -> Tensors:
        x, w, b = t[:3]
        shapes = (x.shape, w.shape, *g.options)
        _, *points = _ops._atrous_conv2d_algorithm(x, 0, *shapes, False, True, tf32)
        form = _ops._atrous_conv2d_pack_weight(w, g.groups, points)
        return (_ops._atrous_conv2d_fused(x, w, b, None, True, *g.options, tf32, form),)

    def followed(t: Tensors, tf32: bool) -> Tensors:
        weight = t[1]
        before = _ops._fingerprint(weight)
        # Minimal filtering does not support float64.
        suits = weight.dtype != torch.float64 and _ops._atrous_conv2d_suits_filters(weight)
        results = transformed(t, tf32) if suits else packed(t, tf32)
        if _ops._fingerprint(weight) != before:
            raise RuntimeError("the fingerprint of a weight that did not change has changed")
        return results

    def highest(t: Tensors, tf32: bool) -> Tensors:
        before = get_precision() == "highest"
        _ops._set_highest_precision(True)
        try:
            return packed(t, tf32)
        finally:
            _ops._set_highest_precision(before)

    def measured(t: Tensors, tf32: bool) -> Tensors:
        # In deterministic mode no measured time can change the choice between two runs.
        before = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(True)
        try:
            return (_ops._measured_conv2d(*t[:3], *g.options, tf32).relu(),)
        finally:
            torch.use_deterministic_algorithms(before)

    def twin(t: Tensors) -> Tensors:
        return (g.torch(*t[:3]).relu(),)

    for operator, run, cpu_only in (
        ("_atrous_conv2d_pack_weight", packed, False),
        ("_atrous_conv2d_suits_filters", followed, True),
        ("_fingerprint", followed, True),
        ("_set_highest_precision", highest, True),
        ("_atrous_conv2d_algorithm", transformed, False),
        ("_measured_conv2d", measured, False),
    ):
        yield Case(
            operator, "forward", name, g.make, run, twin, g.fan_in, ALL, MAPS, cpu_only=cpu_only
        )
