"""Checks arguments of operators. An error names the argument, the value and what is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from .._library import device_problem

# The maximum of strides, paddings, dilations and kernel extents. With it all numbers that are
# computed from them fit in 64 bits. csrc/checked.h has the same limit.
LARGEST_STEP = 2**31 - 1
# The number of elements of the widest dtype that fit in a 64-bit address space.
_MOST_ELEMENTS = (2**63 - 1) // 8

FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def check_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")


def check_floating(name: str, tensor: Tensor) -> None:
    check_tensor(name, tensor)
    if tensor.dtype not in FLOATING:
        raise TypeError(
            f"{name} must be float32, float64, float16 or bfloat16, got {str(tensor.dtype)[6:]}"
        )


def check_device(name: str, tensor: Tensor) -> None:
    # The usual cases come first, because one more function call matters on small maps.
    if tensor.is_cpu or tensor.is_meta:
        return
    problem = device_problem(tensor)
    if problem is not None:
        raise RuntimeError(f"{name} cannot be on {tensor.device}: {problem}")


def check_same(name: str, tensor: Tensor, reference_name: str, reference: Tensor) -> None:
    """Raises RuntimeError unless a tensor has the dtype and device of another argument."""
    if tensor.dtype != reference.dtype:
        raise RuntimeError(
            f"{name} must have the dtype of {reference_name} ({str(reference.dtype)[6:]}), "
            f"got {str(tensor.dtype)[6:]}"
        )
    check_same_device(name, tensor, reference_name, reference)


def check_same_device(name: str, tensor: Tensor, reference_name: str, reference: Tensor) -> None:
    if tensor.device != reference.device:
        raise RuntimeError(
            f"{name} must be on the device of {reference_name} ({reference.device}), "
            f"got {tensor.device}"
        )


def check_rank(name: str, tensor: Tensor, rank: int, shape: str) -> None:
    if tensor.dim() != rank:
        raise ValueError(
            f"{name} must have {rank} dimensions {shape}, got shape {tuple(tensor.shape)}"
        )


def check_map(name: str, tensor: Tensor) -> bool:
    """Checks the input of a convolution; returns whether it has a batch dimension.

    Every device is allowed: where atrousx has no kernels, PyTorch's convolution runs.
    """
    check_floating(name, tensor)
    if tensor.dim() not in (3, 4):
        raise ValueError(
            f"{name} must have 4 dimensions [N, C, H, W] or 3 [C, H, W], "
            f"got shape {tuple(tensor.shape)}"
        )
    return tensor.dim() == 4


def check_operand(name: str, tensor: Tensor, reference_name: str, reference: Tensor) -> None:
    """Checks that a tensor has the device and, without autocast, the dtype of another argument.

    Autocast makes the dtypes equal before the kernel runs.
    """
    check_floating(name, tensor)
    mixed = reference.device.type != "meta" and torch.is_autocast_enabled(reference.device.type)
    if not (mixed and tensor.device == reference.device):
        check_same(name, tensor, reference_name, reference)


def pair(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    """Returns a pair of ints for an int or a pair, as PyTorch's convolution accepts them."""
    # The usual case comes first: isinstance(value, Integral) takes a microsecond.
    if type(value) is tuple and len(value) == 2 and type(value[0]) is type(value[1]) is int:
        return value
    if isinstance(value, (Integral, torch.SymInt)):
        return (_plain(value), _plain(value))
    values = tuple(value) if isinstance(value, Sequence) else ()
    if len(values) == 1:
        values *= 2
    if len(values) != 2 or not all(isinstance(v, (Integral, torch.SymInt)) for v in values):
        raise TypeError(f"{name} must be an int or a pair of ints, got {value!r}")
    return (_plain(values[0]), _plain(values[1]))


def _plain(value: Any) -> int:
    """Converts integers of NumPy to Python ints, which do not overflow; keeps symbolic ones."""
    return value if isinstance(value, torch.SymInt) else int(value)  # type: ignore[return-value]


def check_steps(name: str, value: object, values: Sequence[int], least: int) -> None:
    """Checks that strides, paddings and similar numbers lie between ``least`` and the maximum.

    ``least`` is 0 or 1. Symbolic numbers are compared with ``least`` only, so that a traced graph
    gets no further guard. The kernel refuses numbers that are too large.
    """
    for number in values:
        if number < least:
            raise ValueError(
                f"{name} must {'be positive' if least else 'not be negative'}, got {value!r}"
            )
    if torch.compiler.is_compiling():
        return
    for number in values:
        if not isinstance(number, torch.SymInt) and number > LARGEST_STEP:
            raise ValueError(f"{name} must be at most {LARGEST_STEP}, got {value!r}")


def check_result_size(size: Sequence[int]) -> None:
    """Raises ValueError if a result is larger than any memory; ignores symbolic sizes."""
    if torch.compiler.is_compiling():
        return
    count = 1
    for extent in size:
        if type(extent) is not int:
            return
        count *= extent or 1
    if count > _MOST_ELEMENTS:
        raise ValueError(f"the result would have the size {tuple(size)}, more than memory can have")
