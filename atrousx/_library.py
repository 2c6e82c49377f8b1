"""Loads the compiled operators, and what every operator's Python page needs to register itself."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

NAMESPACE = "atrousx"
VERSION = "0.1.0"


def _load() -> tuple[ModuleType, ModuleType | None]:
    """Loads atrousx._C, which is required, then atrousx._cuda, which a CPU-only build lacks."""
    try:
        core = importlib.import_module("atrousx._C")
    except ImportError as error:
        raise ImportError(
            f"atrousx could not load its compiled operators ({error}). Install it with "
            "'pip install .', or 'pip install -e .' to run it from its source tree; it needs "
            f"torch >= 2.11, this is torch {torch.__version__}."
        ) from error
    try:
        return core, importlib.import_module("atrousx._cuda")
    except ModuleNotFoundError:
        return core, None


core, cuda = _load()
_library = torch.library.Library(NAMESPACE, "FRAGMENT")


def is_gpu(tensor: torch.Tensor) -> bool:
    """Whether atrousx's CUDA kernels compute what is on the tensor's device."""
    return tensor.is_cuda


def register_gradient(
    op: torch._ops.OpOverload,
    gradient: Callable[..., Any],
    save: Callable[[Any, tuple[Any, ...], Any], None] | None = None,
) -> Callable[..., Any]:
    """Gives an operator the gradient of its first argument, and returns a quicker way to call it.

    ``gradient`` and ``save`` are what ``torch.library.register_autograd`` takes. Through the
    dispatcher they cost 6 microseconds a call without a gradient and 20 with one, which small maps
    do not take to compute. What is returned takes all the operator's arguments, in order, and goes
    there only where a compiler, or something else that listens above autograd, may be in between.
    """
    torch.library.register_autograd(op, gradient, setup_context=save)

    class Direct(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                output = op(*args)
            if save is not None:
                save(ctx, args, output)
            return output

        backward = staticmethod(gradient)

    def call(first: torch.Tensor, *args: Any) -> Any:
        if (
            torch.compiler.is_compiling()
            or torch._C._is_any_autocast_enabled()
            or torch._C._are_functorch_transforms_active()
            or torch._C._len_torch_dispatch_stack()
        ):
            return op(first, *args)
        if first.requires_grad and torch.is_grad_enabled():
            return Direct.apply(first, *args)  # type: ignore[no-untyped-call]
        with torch._C._AutoDispatchBelowAutograd():
            return op(first, *args)

    return call


def implement_composite(op: torch._ops.OpOverload, function: Callable[..., Any]) -> None:
    """Makes a function of other operators an operator: for those who trace it, one call at first.

    Its gradients, dtypes and devices are those of the operators that it calls.
    """
    name = op._schema.name.removeprefix(f"{NAMESPACE}::")
    _library.impl(name, function, "CompositeImplicitAutograd")


def register_autocast(op: torch._ops.OpOverload, to_lower_precision: bool) -> None:
    """Gives an operator its autocast rule on CPU and CUDA.

    With ``to_lower_precision`` floating tensors are cast to autocast's own dtype, as PyTorch does
    for convolutions; without, half tensors are cast to float32, as it does for sensitive operators.
    """
    name = op._schema.name.removeprefix(f"{NAMESPACE}::")
    for device_type in ("cpu", "cuda"):
        rule = functools.partial(_autocast, op, device_type, to_lower_precision)
        _library.impl(name, rule, f"Autocast{device_type.upper()}")


def _autocast(
    op: Callable[..., Any], device_type: str, to_lower_precision: bool, *args: Any, **kwargs: Any
) -> Any:
    dtype = torch.get_autocast_dtype(device_type) if to_lower_precision else torch.float32

    def cast(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [cast(item) for item in value]
        castable = (
            isinstance(value, torch.Tensor)
            and value.is_floating_point()
            and value.dtype != torch.float64
            and value.device.type == device_type
        )
        return value.to(dtype) if castable else value

    excluded = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU).add(
        torch._C.DispatchKey.AutocastCUDA
    )
    with torch._C._ExcludeDispatchKeyGuard(excluded):
        return op(*map(cast, args), **{name: cast(value) for name, value in kwargs.items()})
