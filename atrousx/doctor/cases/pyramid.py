"""Cases of multi_rate_conv2d: branches of several dilations, concatenated or added."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..devices import Device
from .case import ALL, MAPS, Case, Tensors, gradients_of

_ops = torch.ops.atrousx


class Pyramid(NamedTuple):
    batch: int
    channels: int
    size: tuple[int, int]
    outputs: int
    branches: Sequence[tuple[int, int]]  # the side of a square kernel, its dilation
    adds: bool

    @property
    def dilations(self) -> list[int]:
        return [dilation for _, dilation in self.branches]

    @property
    def length(self) -> int:
        taps = [kernel**2 for kernel, _ in self.branches]
        return self.channels * (sum(taps) if self.adds else max(taps))

    def make(self) -> Tensors:
        """Returns input, bias, gradient of the output, and the weights of the branches."""
        x = torch.randn(self.batch, self.channels, *self.size).double()
        outputs = self.outputs * (1 if self.adds else len(self.branches))
        bias = torch.randn(outputs).double()
        grad = torch.randn(self.batch, outputs, *self.size).double()
        weights = [
            torch.randn(self.outputs, self.channels, k, k).double() / self.length**0.5
            for k, _ in self.branches
        ]
        return x, bias, grad, *weights

    def torch(self, t: Tensors) -> Tensors:
        x, bias, _, *weights = t
        parts = [
            F.conv2d(x, w, None, 1, dilation * (kernel // 2), dilation)
            for w, (kernel, dilation) in zip(weights, self.branches, strict=True)
        ]
        joined = sum(parts[1:], parts[0]) if self.adds else torch.cat(parts, 1)
        return (joined + bias[:, None, None],)


_V2, _V3 = [(3, rate) for rate in (3, 6, 9, 12)], [(1, 1), (3, 2), (3, 4), (3, 7)]
QUICK = {
    "sum, 21 outputs, C odd": Pyramid(1, 17, (14, 15), 21, _V2, True),
    "sum, 64 outputs, C % 8 = 0": Pyramid(1, 24, (9, 13), 64, _V2[:2], True),
    "side by side": Pyramid(2, 20, (13, 9), 17, _V3, False),
    "empty batch": Pyramid(0, 16, (5, 6), 16, _V2[:2], True),
}
FULL = {
    "sum, 21 outputs, C % 8 = 0": Pyramid(1, 64, (21, 19), 21, _V2, True),
    "sum, 40 outputs, C odd": Pyramid(1, 35, (15, 17), 40, [(5, 2), (3, 4), (1, 1)], True),
    "side by side, C % 8 = 0": Pyramid(1, 32, (21, 19), 72, _V3, False),
}


def cases(device: Device, quick: bool) -> Iterator[Case]:
    for name, pyramid in (QUICK if quick else {**QUICK, **FULL}).items():
        yield from _cases(name, pyramid)


def _cases(name: str, p: Pyramid) -> Iterator[Case]:
    def forward(t: Tensors, tf32: bool) -> Tensors:
        x, bias, _, *weights = t
        return (_ops.multi_rate_conv2d(x, weights, bias, p.dilations, p.adds, tf32),)

    def gradients(t: Tensors, tf32: bool) -> Tensors:
        return gradients_of(lambda leaves: forward(leaves, tf32), t, t[2], wanted)

    def clipped(t: Tensors, tf32: bool) -> Tensors:
        x, bias, _, *weights = t
        return (_ops._multi_rate_conv2d_relu(x, weights, bias, p.dilations, p.adds, tf32, []),)

    def torch_gradients(t: Tensors) -> Tensors:
        return gradients_of(p.torch, t, t[2], wanted)

    wanted = (0, 1, *range(3, 3 + len(p.branches)))
    sums = p.batch * p.size[0] * p.size[1]
    of_input = p.outputs * sum(kernel**2 for kernel, _ in p.branches)
    for operator, pass_name, run, twin, length in (
        ("multi_rate_conv2d", "forward", forward, p.torch, p.length),
        ("multi_rate_conv2d", "gradients", gradients, torch_gradients, max(sums, of_input)),
        (
            "_multi_rate_conv2d_relu",
            "forward",
            clipped,
            lambda t: (p.torch(t)[0].relu(),),
            p.length,
        ),
    ):
        yield Case(operator, pass_name, name, p.make, run, twin, length, ALL, MAPS)
