"""Argument checks of the operators: a sentence naming the argument, what came, what is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from .._library import device_problem

# Strides, paddings, dilations and kernels, at most: what is computed from them then fits 64 bits.
# csrc/checked.h has the same limit.
LARGEST_STEP = 2**31 - 1
# Bytes that 64 bits address, in elements of the widest dtype.
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
    # The usual cases first: each call of a function costs a small map.
    if tensor.is_cpu or tensor.is_meta:
        return
    problem = device_problem(tensor)
    if problem is not None:
        raise RuntimeError(f"{name} cannot be on {tensor.device}: {problem}")


def check_same(name: str, tensor: Tensor, reference_name: str, reference: Tensor) -> None:
    """Same dtype and device as another argument."""
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
    """Checks what a convolution reads; says whether it has a batch dimension.

    Its device may be any: where atrousx has no kernels, PyTorch's convolution runs.
    """
    check_floating(name, tensor)
    if tensor.dim() not in (3, 4):
        raise ValueError(
            f"{name} must have 4 dimensions [N, C, H, W] or 3 [C, H, W], "
            f"got shape {tuple(tensor.shape)}"
        )
    return tensor.dim() == 4


def check_operand(name: str, tensor: Tensor, reference_name: str, reference: Tensor) -> None:
    """Dtype and device of another argument; autocast brings dtypes together before the kernel."""
    check_floating(name, tensor)
    mixed = reference.device.type != "meta" and torch.is_autocast_enabled(reference.device.type)
    if not (mixed and tensor.device == reference.device):
        check_same(name, tensor, reference_name, reference)


def pair(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    """An int or a pair of ints, as PyTorch's convolution arguments are given."""
    # The usual case first: asking whether a value is Integral takes a microsecond.
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
    """NumPy's integers as Python's, which do not overflow; symbolic ones as they are."""
    return value if isinstance(value, torch.SymInt) else int(value)  # type: ignore[return-value]


def check_steps(name: str, value: object, values: Sequence[int], least: int) -> None:
    """Strides, paddings and the like: from ``least``, 0 or 1, to what kernels can compute with.

    Symbolic numbers are compared with nothing but ``least``, so that a traced graph gets no guard
    of ours: the kernel itself refuses what is too large.
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
    """A result that no memory could hold; sizes that are symbolic are left to the allocator."""
    if torch.compiler.is_compiling():
        return
    count = 1
    for extent in size:
        if type(extent) is not int:
            return
        count *= extent or 1
    if count > _MOST_ELEMENTS:
        raise ValueError(f"the result would have the size {tuple(size)}, more than memory can have")
