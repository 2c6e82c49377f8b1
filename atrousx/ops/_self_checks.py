"""The self-checks of operators on a GPU, which run before the operator is used the first time."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backend.self_check import numbers, register
from ._mean_field import Term, mean_field
from ._permutohedral_lattice import build_lattice
from .multi_rate_conv2d import multi_rate_conv2d
from .permutohedral_filter import normalizer, permutohedral_filter
from .upsample_argmax import upsample_argmax
from .upsample_bilinear2d import upsample_bilinear2d
from .upsample_cross_entropy import upsample_cross_entropy
from .upsample_softmax_add import upsample_softmax_add_

_multi_rate_relu = torch.ops.atrousx._multi_rate_conv2d_relu.default

Results = tuple[Tensor, ...]


def _both_formats(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Returns a tensor in the default layout and in channels_last: they use different kernels."""
    return tensor, tensor.contiguous(memory_format=torch.channels_last)


def _logits() -> Results:
    return (4 * numbers(2, 5, 4, 6),)


@register("upsample_bilinear2d", _logits)
def _upsample(logits: Tensor) -> Results:
    return tuple(
        upsample_bilinear2d(given, size, align_corners=corners)
        for given in _both_formats(logits)
        for size, corners in (((13, 9), False), ((3, 11), True))
    )


@register("upsample_argmax", _logits)
def _argmax(logits: Tensor) -> Results:
    results = [upsample_argmax(t, (13, 9), return_probability=True) for t in _both_formats(logits)]
    return tuple(tensor for pair in results for tensor in pair)


@register("upsample_softmax_add_", _logits)
def _softmax_add(logits: Tensor) -> Results:
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    sums = [torch.ones(2, 5, 13, 9, dtype=wide, device=logits.device) for _ in range(2)]
    for total, given in zip(sums, _both_formats(logits.detach()), strict=True):
        upsample_softmax_add_(total, given, 0.5, flip=True)
    return tuple(sums)


def _labelled() -> Results:
    target = torch.arange(2 * 13 * 9).remainder(7).reshape(2, 13, 9)
    target[target > 4] = -100
    return (*_logits(), target)


@register("upsample_cross_entropy", _labelled)
def _cross_entropy(logits: Tensor, target: Tensor) -> Results:
    return tuple(
        upsample_cross_entropy(given, target, label_smoothing=0.1, reduction=reduction)
        for given in _both_formats(logits)
        for reduction in ("mean", "none")
    )


def _branches() -> Results:
    sizes = ((2, 24, 9, 11), (32, 24, 1, 1), (32, 24, 3, 3), (32,))
    return tuple(numbers(*size) / 4 for size in sizes)


@register("multi_rate_conv2d", _branches, takes_tf32=True)
def _multi_rate(input: Tensor, narrow: Tensor, wide: Tensor, bias: Tensor) -> Results:
    weights, rates = [narrow, wide, wide], (1, 2, 5)
    results = []
    for given in _both_formats(input):
        for reduce in ("cat", "sum"):
            results.append(multi_rate_conv2d(given, weights, [bias] * 3, rates, reduce=reduce))
        fixed = [weight.detach() for weight in weights]
        bias_3 = torch.cat([bias.detach()] * 3)
        results.append(_multi_rate_relu(given.detach(), fixed, bias_3, rates, False, False, []))
    return tuple(results)


def _points() -> Results:
    return numbers(2, 3, 40), 2 * numbers(2, 5, 40)


@register("permutohedral_filter", _points)
def _filter(values: Tensor, features: Tensor) -> Results:
    return tuple(permutohedral_filter(values, features, kind) for kind in ("symmetric", "after"))


def _field() -> Results:
    compatibility = 1 - torch.eye(4, dtype=torch.float64) + numbers(4, 4) / 8
    return 2 * numbers(2, 4, 40), 2 * numbers(2, 5, 40), numbers(2, 2, 40), compatibility


@register("mean_field", _field)
def _mean_field(logits: Tensor, features: Tensor, places: Tensor, compatibility: Tensor) -> Results:
    def energy(costs: Tensor | None) -> list[Term]:
        lattices = [build_lattice(features), build_lattice(places)]
        scales = [normalizer(lattice, "symmetric") for lattice in lattices]
        return [Term(lattices[0], scales[0], 2.0, costs), Term(lattices[1], scales[1], 1.0, None)]

    fixed = [t.detach() for t in (logits, compatibility)]
    # Inference and training use different kernels: only training keeps the states.
    with torch.no_grad():
        inferred = mean_field(fixed[0], energy(fixed[1]), 3)
    return inferred, mean_field(logits, energy(compatibility), 3)
