"""Registers the Python kernels and fake kernels of operators.

They refuse tensors on several devices, as the kernels in C++ do.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from .._library import NAMESPACE, register_gpu_kernel
from ._check import check_same_device

_Kernel = TypeVar("_Kernel", bound=Callable[..., Any])


def register_fake(name: str) -> Callable[[_Kernel], _Kernel]:
    """Like ``torch.library.register_fake``, but the kernel refuses tensors on several devices."""

    def register(kernel: _Kernel) -> _Kernel:
        torch.library.register_fake(f"{NAMESPACE}::{name}")(on_one_device(name, kernel))
        return kernel

    return register


def register_kernel(name: str, devices: str | Sequence[str]) -> Callable[[_Kernel], _Kernel]:
    """Like ``torch.library.impl``, but the kernel refuses tensors on several devices."""

    def register(kernel: _Kernel) -> _Kernel:
        checked = on_one_device(name, kernel)
        for device in (devices,) if isinstance(devices, str) else devices:
            if device == "cuda":
                register_gpu_kernel(name, checked)
            else:
                torch.library.impl(f"{NAMESPACE}::{name}", device)(checked)
        return kernel

    return register


def on_one_device(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a kernel that refuses tensors on several devices and then calls the given one."""
    operator = getattr(getattr(torch.ops, NAMESPACE), name).default
    names = [argument.name for argument in operator._schema.arguments]

    @functools.wraps(kernel)
    def checked(*args: Any, **kwargs: Any) -> Any:
        check_one_device({**dict(zip(names, args, strict=False)), **kwargs})
        return kernel(*args, **kwargs)

    return checked


def check_one_device(arguments: dict[str, Any]) -> None:
    """Raises RuntimeError unless all tensors are on the device of the first one."""
    tensors = _tensors(arguments)
    first_name, first = next(tensors)
    for name, tensor in tensors:
        check_same_device(name, tensor, first_name, first)


def _tensors(arguments: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, (list, tuple)):
            yield from (
                (f"{name}[{index}]", item)
                for index, item in enumerate(value)
                if isinstance(item, Tensor)
            )
