"""Cases of upsample_bilinear2d and of operators that read upsampled logits without storing them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..devices import Device
from .case import MAPS, Case, Tensors, gradients_of

_ops = torch.ops.atrousx
_IGNORED, _SMOOTHING = 255, 0.1
_NONE, _MEAN, _SUM = range(3)
Pair = tuple[int, int]


class Resampling(NamedTuple):
    batch: int
    channels: int
    size: Pair
    output: Pair
    corners: bool = False

    def torch(self, x: Tensor) -> Tensor:
        return F.interpolate(x, self.output, mode="bilinear", align_corners=self.corners)

    def make(self) -> Tensors:
        """Returns logits, a gradient of the output, labels, class weights, sum of probabilities."""
        logits = torch.randn(self.batch, self.channels, *self.size).double()
        grad, total = (
            torch.randn(self.batch, self.channels, *self.output).double() for _ in range(2)
        )
        labels = torch.randint(self.channels, (self.batch, *self.output))
        labels[:, ::3, ::5] = _IGNORED
        weights = torch.rand(self.channels).double() + 0.5
        return logits, grad, labels, weights, total


QUICK = {
    "x8, 21 labels": Resampling(1, 21, (5, 6), (40, 48)),
    "odd sizes": Resampling(2, 7, (9, 13), (20, 31)),
    "corners aligned": Resampling(1, 5, (6, 7), (11, 25), True),
    "empty batch": Resampling(0, 3, (4, 4), (9, 9)),
}
FULL = {
    "x8, 33 to 257": Resampling(1, 21, (33, 33), (257, 257)),
    "smaller": Resampling(2, 19, (65, 77), (33, 20)),
    "150 labels": Resampling(1, 150, (16, 16), (65, 70)),
    "from one pixel": Resampling(4, 64, (1, 1), (9, 11)),
    "same size": Resampling(1, 9, (33, 31), (33, 31)),
}


def cases(device: Device, quick: bool) -> Iterator[Case]:
    for name, resampling in (QUICK if quick else {**QUICK, **FULL}).items():
        yield from _resampling(name, resampling)
        yield from _reductions(name, resampling)
        if resampling.batch:
            yield from _losses(name, resampling)


def _resampling(name: str, r: Resampling) -> Iterator[Case]:
    def forward(t: Tensors, tf32: bool) -> Tensors:
        return (_ops.upsample_bilinear2d(t[0], r.output, r.corners),)

    def gradients(t: Tensors, tf32: bool) -> Tensors:
        return gradients_of(lambda leaves: forward(leaves, tf32), t, t[1], (0,))

    def transposed(t: Tensors, tf32: bool) -> Tensors:
        return (_ops._upsample_bilinear2d_backward(t[1], *r.size, r.corners),)

    def twin(t: Tensors) -> Tensors:
        return (r.torch(t[0]),)

    def torch_gradients(t: Tensors) -> Tensors:
        return gradients_of(twin, t, t[1], (0,))

    gathered = 4 * (r.output[0] // r.size[0] + 2) * (r.output[1] // r.size[1] + 2)
    for operator, pass_name, run, by_torch, length in (
        ("upsample_bilinear2d", "forward", forward, twin, 4),
        ("upsample_bilinear2d", "gradients", gradients, torch_gradients, gathered),
        ("_upsample_bilinear2d_backward", "forward", transposed, torch_gradients, gathered),
    ):
        yield Case(operator, pass_name, name, r.make, run, by_torch, length, layouts=MAPS)


def _reductions(name: str, r: Resampling) -> Iterator[Case]:
    def best(t: Tensors, tf32: bool) -> Tensors:
        labels, share = _ops._upsample_argmax(t[0], r.output, r.corners, True, False)
        narrow, _ = _ops._upsample_argmax(t[0], r.output, r.corners, False, True)
        # Labels may differ if logits are equal up to rounding, so their exact logits are compared.
        return _logit_of(r, t[0], labels), _logit_of(r, t[0], narrow.long()), share

    def torch_best(t: Tensors) -> Tensors:
        upsampled = r.torch(t[0])
        picked = _logit_of(r, t[0], upsampled.argmax(1))
        return picked, picked, upsampled.softmax(1).amax(1)

    def added(t: Tensors, tf32: bool) -> Tensors:
        total = t[4].to(torch.promote_types(t[0].dtype, torch.float32)).clone()
        _ops._upsample_softmax_add_(total, t[0], 0.5, True, r.corners)
        return (total,)

    def torch_added(t: Tensors) -> Tensors:
        wide = torch.promote_types(t[0].dtype, torch.float32)
        # The operator computes half types in float32, so the twin does the same.
        upsampled = r.torch(t[0].flip(-1).to(wide))
        return (t[4].to(wide) + 0.5 * upsampled.softmax(1),)

    for operator, run, twin in (
        ("_upsample_argmax", best, torch_best),
        ("_upsample_softmax_add_", added, torch_added),
    ):
        yield Case(operator, "forward", name, r.make, run, twin, 4 * r.channels, layouts=MAPS)


def _logit_of(r: Resampling, logits: Tensor, labels: Tensor) -> Tensor:
    exact = r.torch(logits.detach().cpu().double())
    return exact.gather(1, labels.cpu()[:, None])


def _one(logits: Tensor) -> Tensor:
    return logits.new_ones((), dtype=torch.promote_types(logits.dtype, torch.float32))


def _torch_loss(r: Resampling, t: Tensors, reduction: str) -> Tensor:
    wide = torch.promote_types(t[0].dtype, torch.float32)
    return F.cross_entropy(
        r.torch(t[0].to(wide)),
        t[2],
        t[3].to(wide),
        ignore_index=_IGNORED,
        reduction=reduction,
        label_smoothing=_SMOOTHING,
    )


def _losses(name: str, r: Resampling) -> Iterator[Case]:
    def loss(t: Tensors, reduction: int) -> Tensors:
        computed = torch.promote_types(t[0].dtype, torch.float32)
        options = (_IGNORED, _SMOOTHING, r.corners, reduction)
        found = _ops._upsample_cross_entropy(t[0], t[2], t[3].to(computed), *options)
        return found[0], found[1], found[2]

    torch_loss = partial(_torch_loss, r)

    def forward(t: Tensors, tf32: bool) -> Tensors:
        return loss(t, _MEAN)[0], loss(t, _NONE)[0]

    def torch_forward(t: Tensors) -> Tensors:
        return torch_loss(t, "mean"), torch_loss(t, "none")

    def gradients(t: Tensors, tf32: bool) -> Tensors:
        return gradients_of(lambda leaves: loss(leaves, _MEAN), t, _one(t[0]), (0,))

    def torch_gradients(t: Tensors) -> Tensors:
        return gradients_of(lambda leaves: (torch_loss(leaves, "mean"),), t, _one(t[0]), (0,))

    def backward(t: Tensors, tf32: bool) -> Tensors:
        value, weight, log_sum = loss(t, _SUM)
        options = (_IGNORED, _SMOOTHING, r.corners, _SUM)
        given = (torch.ones_like(value), t[0], t[2], t[3].to(value.dtype), weight, log_sum)
        return (_ops._upsample_cross_entropy_backward(*given, *options),)

    def torch_backward(t: Tensors) -> Tensors:
        return gradients_of(lambda leaves: (torch_loss(leaves, "sum"),), t, _one(t[0]), (0,))

    length = 4 * r.channels + r.output[0] * r.output[1]
    for operator, pass_name, run, twin in (
        ("_upsample_cross_entropy", "forward", forward, torch_forward),
        ("_upsample_cross_entropy", "gradients", gradients, torch_gradients),
        ("_upsample_cross_entropy_backward", "forward", backward, torch_backward),
    ):
        yield Case(operator, pass_name, name, r.make, run, twin, length, layouts=MAPS)
