"""Valid arguments of every operator in the schema, for tests of all operators.

``cases(name)`` lists calls of an operator: small ones that cover its different paths, and sizes of
1, where views and copies are easily confused. ``Case.arguments(device, dtype)`` returns all
arguments by position, with the same numbers on every device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import atrousx  # noqa: F401  (registers the operators)
from atrousx.ops._permutohedral_lattice import _key_layout, _neighbour_steps, build_lattice

ops = torch.ops.atrousx
FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
LATTICE = (torch.float32, torch.float64)


class Numbers:
    """Creates random tensors of one dtype on one device."""

    def __init__(self, device: torch.device | str, dtype: torch.dtype) -> None:
        self.device, self.dtype = torch.device(device), dtype
        self._generator = torch.Generator().manual_seed(0)

    def normal(self, *size: int) -> Tensor:
        drawn = torch.randn(size, generator=self._generator, dtype=torch.float64)
        return drawn.to(self.dtype).to(self.device)

    def uniform(self, dtype: torch.dtype, *size: int) -> Tensor:
        drawn = torch.rand(size, generator=self._generator, dtype=torch.float64)
        return drawn.to(dtype).to(self.device)

    def labels(self, count: int, *size: int) -> Tensor:
        drawn = torch.randint(count, size, generator=self._generator)
        return drawn.to(self.device)

    @property
    def sums(self) -> torch.dtype:
        """The dtype in which this dtype is accumulated."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32


# Operators that only the CPU's kernels, and the layers that call them, use.
CPU_ONLY = ("_atrous_conv2d_suits_filters", "_fingerprint")


@dataclass(frozen=True)
class Case:
    operator: str
    label: str
    make: Callable[[Numbers], Sequence[Any]]
    dtypes: tuple[torch.dtype, ...]

    def serves(self, device: torch.device) -> bool:
        return device.type == "cpu" or self.operator not in CPU_ONLY

    def arguments(
        self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> list[Any]:
        return list(self.make(Numbers(device, dtype)))

    def __str__(self) -> str:
        return f"{self.operator}-{self.label}"


Place = tuple[int, int | None]  # an argument and, if it is a list, an index in it


def tensor_places(arguments: Sequence[Any]) -> Iterator[Place]:
    for index, value in enumerate(arguments):
        if isinstance(value, Tensor):
            yield index, None
        elif isinstance(value, (list, tuple)):
            yield from ((index, i) for i, item in enumerate(value) if isinstance(item, Tensor))


def tensor_at(arguments: Sequence[Any], place: Place) -> Tensor:
    index, item = place
    tensor: Tensor = arguments[index] if item is None else arguments[index][item]
    return tensor


def with_tensor(arguments: Sequence[Any], place: Place, tensor: Tensor) -> list[Any]:
    """Returns the arguments with another tensor in that place."""
    index, item = place
    changed = list(arguments)
    if item is None:
        changed[index] = tensor
    else:
        changed[index] = [*changed[index][:item], tensor, *changed[index][item + 1 :]]
    return changed


def registered_operators() -> list[str]:
    names = (name.split("::") for name in torch._C._dispatch_get_all_op_names())
    return sorted(name for library, name in names if library == "atrousx")


def cases(name: str) -> list[Case]:
    dtypes: tuple[torch.dtype, ...]
    dtypes = LATTICE if name.startswith(("_permutohedral", "_mean_field")) else FLOATING
    if name == "_atrous_conv2d_suits_filters":  # Winograd has only these
        dtypes = (torch.float32, torch.float16, torch.bfloat16)
    return [Case(name, label, make, dtypes) for label, make in _MAKERS[name].items()]


def all_cases() -> list[Case]:
    return [case for name in _MAKERS for case in cases(name)]


_ROWS = ([1, 1], [1, 1, 1, 1], [1, 1], 1)  # stride, padding, dilation, groups
_DILATED = ([1, 1], [2, 2, 2, 2], [2, 2], 1)
_DEPTHWISE = ([2, 2], [1, 1, 1, 1], [1, 1], 8)
_POINTWISE = ([1, 1], [0, 0, 0, 0], [1, 1], 1)


def _convolution(n: Numbers, options: Sequence[Any], size: Sequence[int], taps: int) -> list[Any]:
    weight = n.normal(size[1], size[1] // options[-1], taps, taps)
    return [n.normal(*size), weight, n.normal(size[1]), *options, False]


def _fused(n: Numbers, options: Sequence[Any], size: Sequence[int], taps: int) -> list[Any]:
    input, weight, bias, *rest = _convolution(n, options, size, taps)
    output = ops.atrous_conv2d(input, weight, bias, *rest)
    packed = ops._atrous_conv2d_pack_weight(weight, options[-1])
    return [input, weight, bias, n.normal(*output.shape), True, *rest, packed]


def _convolution_gradient(of: str, options: Sequence[Any], size: Sequence[int], taps: int) -> Any:
    def make(n: Numbers) -> list[Any]:
        input, weight, bias, *rest = _convolution(n, options, size, taps)
        grad = n.normal(*ops.atrous_conv2d(input, weight, bias, *rest).shape)
        other, like = (weight, input) if of == "input" else (input, weight)
        return [grad, other, list(like.shape), *rest]

    return make


_CONVOLUTIONS = {
    "dilated": (_DILATED, (2, 8, 9, 7), 3),
    "depthwise": (_DEPTHWISE, (1, 8, 9, 7), 3),
    "pointwise": (_POINTWISE, (1, 8, 3, 5), 1),
    "one element": (_POINTWISE, (1, 1, 1, 1), 1),
    "border": (_ROWS, (1, 8, 1, 1), 3),
}


def _multi_rate(n: Numbers, sum: bool, packed: bool, branches: int = 2) -> list[Any]:
    weights = [n.normal(4, 8, taps, taps) for taps in (3, 1)[:branches]]
    bias = n.normal(4 if sum else 4 * branches)
    forms = [ops._atrous_conv2d_pack_weight(w, 1) for w in weights] if packed and not sum else []
    last = [forms] if packed else []
    return [n.normal(2, 8, 7, 6), weights, bias, [2, 1][:branches], sum, False, *last]


def _loss(n: Numbers, reduction: int, weighted: bool, size: Sequence[int] = (2, 3, 4, 5)) -> Any:
    target = n.labels(size[1], size[0], 2 * size[2], 2 * size[3])
    weight = n.uniform(n.sums, size[1]) if weighted else None
    return [n.normal(*size), target, weight, -100, 0.1, False, reduction]


def _loss_gradient(n: Numbers, reduction: int, weighted: bool) -> list[Any]:
    logits, target, weight, *options = _loss(n, reduction, weighted)
    loss, total, log_sum = ops._upsample_cross_entropy(logits, target, weight, *options)
    return [torch.ones_like(loss), logits, target, weight, total, log_sum, *options]


def _lattice(n: Numbers, images: int = 2, dims: int = 3, points: int = 10) -> tuple[Tensor, ...]:
    return build_lattice(2 * n.normal(images, dims, points))


def _apply(n: Numbers, channels: int, scaled: bool, transpose: bool) -> list[Any]:
    lattice = _lattice(n)
    scales = [n.normal(20, 1) if scaled else None for _ in range(2)]
    return [n.normal(20, channels), *lattice, *scales, transpose]


def _corner_product(n: Numbers, channels: int) -> list[Any]:
    return [n.normal(20, channels), n.normal(20, channels), *_lattice(n), False]


def _keys(n: Numbers) -> list[Any]:
    base, rank, _ = ops._permutohedral_embed(2 * n.normal(2, 3, 10))
    return [base, rank, *_key_layout(base, 2)]


def _neighbours(n: Numbers) -> list[Any]:
    base, rank, words, strides, minima = _keys(n)
    keys = ops._permutohedral_pack(base, rank, words, strides, minima)[0].unique()[None]
    return [keys, _neighbour_steps(3, words, strides).to(n.device)]


def _mean_field(n: Numbers, labels: int, points: int, images: int = 2) -> list[Any]:
    tensors: list[Tensor] = []
    none = n.normal(0)
    scale, costs = n.uniform(n.dtype, images * points, 1), n.normal(labels, labels)
    for dims, last in ((2, [none, none, none]), (5, [scale, scale, costs])):
        tensors += [*_lattice(n, images, dims, points), *last]
    return [n.normal(images, labels, points), tensors, [0.7, -0.4], 2]


def _mean_field_gradient(n: Numbers, *sizes: int) -> list[Any]:
    logits, tensors, weights, iterations = _mean_field(n, *sizes)
    q, states = ops._mean_field_states(logits, tensors, weights, iterations)
    return [n.normal(*q.shape), states, tensors, weights, True, True]


_FIELDS = {
    "several": (5, 10),
    "one label": (1, 10),
    "one point": (5, 1),
    "one element": (1, 1, 1),
    "whole vectors": (8, 1),
}
_Maker = Callable[[Numbers], Sequence[Any]]


def _table(
    make: Callable[..., Sequence[Any]], rows: Mapping[str, Sequence[Any]]
) -> dict[str, _Maker]:
    return {label: lambda n, row=row: make(n, *row) for label, row in rows.items()}  # type: ignore[misc]


_MAKERS: dict[str, dict[str, _Maker]] = {
    "atrous_conv2d": _table(_convolution, _CONVOLUTIONS),
    "_atrous_conv2d_pack_weight": {
        "wide": lambda n: [n.normal(8, 8, 3, 3), 1, []],
        "narrow": lambda n: [n.normal(8, 1, 3, 3), 8, []],
        "one element": lambda n: [n.normal(1, 1, 1, 1), 1, []],
    },
    "_measured_conv2d": _table(_convolution, _CONVOLUTIONS),
    "_atrous_conv2d_algorithm": {
        f"pass {number}": lambda n, number=number: [  # type: ignore[misc]
            n.normal(1),
            number,
            [1, 64, 9, 9],
            [64, 64, 3, 3],
            *_ROWS,
            False,
            False,
            False,
        ]
        for number in range(3)
    },
    "_atrous_conv2d_suits_filters": {"wide": lambda n: [n.normal(16, 16, 3, 3)]},
    "_fingerprint": {
        "wide": lambda n: [n.normal(16, 16, 3, 3)],
        "one element": lambda n: [n.normal(1, 1, 1, 1)],
    },
    "_cpu_build_info": {"all": lambda n: []},
    "_cuda_build_info": {"all": lambda n: []},
    "_set_highest_precision": {"off": lambda n: [False]},
    "_atrous_conv2d_fused": _table(_fused, _CONVOLUTIONS),
    "_atrous_conv2d_backward_input": {
        label: _convolution_gradient("input", *row) for label, row in _CONVOLUTIONS.items()
    },
    "_atrous_conv2d_backward_weight": {
        label: _convolution_gradient("weight", *row) for label, row in _CONVOLUTIONS.items()
    },
    "multi_rate_conv2d": _table(
        _multi_rate, {"cat": (False, False), "sum": (True, False), "one branch": (True, False, 1)}
    ),
    "_multi_rate_conv2d_relu": _table(_multi_rate, {"cat": (False, True), "sum": (True, True)}),
    "upsample_bilinear2d": {
        "larger": lambda n: [n.normal(2, 3, 4, 5), [7, 11], False, 1.75, 2.2],
        "equal": lambda n: [n.normal(2, 3, 4, 5), [4, 5], False, None, None],
        "one element": lambda n: [n.normal(1, 1, 1, 1), [1, 1], True, None, None],
    },
    "_upsample_bilinear2d_backward": {
        "smaller": lambda n: [n.normal(2, 3, 7, 11), 4, 5, False, 1.75, 2.2],
        "equal": lambda n: [n.normal(2, 3, 4, 5), 4, 5, False, None, None],
        "one element": lambda n: [n.normal(1, 1, 1, 1), 1, 1, True, None, None],
    },
    "_upsample_argmax": {
        "labels": lambda n: [n.normal(2, 3, 4, 5), [7, 11], False, False, True],
        "with probability": lambda n: [n.normal(2, 3, 4, 5), [7, 11], False, True, False],
        "one element": lambda n: [n.normal(1, 1, 1, 1), [1, 1], True, True, False],
    },
    "_upsample_softmax_add_": {
        label: lambda n, size=size: [  # type: ignore[misc]
            torch.zeros(size[0], size[1], 7, 11, dtype=n.sums).to(n.device),
            n.normal(*size),
            0.5,
            True,
            False,
        ]
        for label, size in {"several": (2, 3, 4, 5), "one element": (1, 1, 1, 1)}.items()
    },
    "_upsample_cross_entropy": _table(
        _loss,
        {
            "none": (0, True),
            "mean": (1, True),
            "sum": (2, False),
            "one element": (0, False, (1, 1, 1, 1)),
        },
    ),
    "_upsample_cross_entropy_backward": _table(
        _loss_gradient, {"none": (0, True), "mean": (1, True), "sum": (2, False)}
    ),
    "_permutohedral_build": {
        "several": lambda n: [n.normal(2, 3, 10)],
        "one element": lambda n: [n.normal(1, 1, 1)],
    },
    "_permutohedral_assemble": {
        "several": lambda n: [n.normal(2, 3, 10)],
        "one element": lambda n: [n.normal(1, 1, 1)],
    },
    "_permutohedral_embed": {
        "several": lambda n: [n.normal(2, 3, 10)],
        "one element": lambda n: [n.normal(1, 1, 1)],
    },
    "_permutohedral_embed_backward": {
        "several": lambda n: [n.normal(2, 10, 4), ops._permutohedral_embed(n.normal(2, 3, 10))[1]]
    },
    "_permutohedral_pack": {"several": _keys},
    "_permutohedral_neighbours": {"several": _neighbours},
    "_permutohedral_apply": _table(
        _apply,
        {"plain": (3, False, False), "scaled": (8, True, True), "one channel": (1, False, False)},
    ),
    "_permutohedral_corner_product": _table(_corner_product, {"several": (3,), "one": (1,)}),
    "_mean_field": _table(_mean_field, _FIELDS),
    "_mean_field_states": _table(_mean_field, _FIELDS),
    "_mean_field_backward": _table(_mean_field_gradient, _FIELDS),
}
