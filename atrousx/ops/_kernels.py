"""Registers what Python computes of an operator, its kernels and fake kernels, with the check of
devices that those in C++ have."""

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
    """The decorator ``torch.library.register_fake``, whose kernel refuses several devices."""

    def register(kernel: _Kernel) -> _Kernel:
        torch.library.register_fake(f"{NAMESPACE}::{name}")(on_one_device(name, kernel))
        return kernel

    return register


def register_kernel(name: str, devices: str | Sequence[str]) -> Callable[[_Kernel], _Kernel]:
    """The decorator ``torch.library.impl``, whose kernel refuses several devices."""

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
    """The kernel of an operator, refusing tensors on several devices."""
    operator = getattr(getattr(torch.ops, NAMESPACE), name).default
    names = [argument.name for argument in operator._schema.arguments]

    @functools.wraps(kernel)
    def checked(*args: Any, **kwargs: Any) -> Any:
        check_one_device({**dict(zip(names, args, strict=False)), **kwargs})
        return kernel(*args, **kwargs)

    return checked


def check_one_device(arguments: dict[str, Any]) -> None:
    """Raises unless all tensors of named arguments are on the device of the first."""
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
