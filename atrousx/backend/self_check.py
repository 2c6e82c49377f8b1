"""Checks operators on a GPU against the CPU's operators.

``atrous_conv2d`` is not among them: the backend "measure" compares it with PyTorch's convolution.
A check runs once for each device and dtype, before the operator's first result is returned. It
computes forward and gradient on a tiny input. If the kernel is wrong, every call raises
RuntimeError. A wrong result must not be used. To compute on the CPU instead would hide that the
operator became slow. On the CPU nothing is checked: its kernels are the reference here, and the
test suite compares them with float64.
"""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from .._library import assume_constant_result, is_gpu
from .choice import tf32_switch
from .machine import is_capturing

ENVIRONMENT = "ATROUSX_SELF_CHECK"

# The largest relative errors that different rounding and orders of summation explain.
_ALLOWED = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
}
# TF32 has as many mantissa bits as float16.
_ALLOWED_TF32 = _ALLOWED[torch.float16]

# A case gets its inputs on the device, floating ones in the dtype. Gradients are checked of those
# results that require one.
Case = Callable[..., tuple[Tensor, ...]]


class _Check(NamedTuple):
    case: Case
    inputs: Callable[[], tuple[Tensor, ...]]  # on the CPU; floating ones in float64
    takes_tf32: bool  # whether it rounds float32 to TF32 if PyTorch's switch is on


_checks: dict[str, _Check] = {}
# Operator, dtype, device, and whether float32 is rounded to TF32, which is done by other kernels.
Key = tuple[str, torch.dtype, torch.device, bool]
# The results of checks: None if the operator is right, or else the error message.
_found: dict[Key, str | None] = {}
_lock = threading.Lock()
# Set while a check runs: the check calls the operator, which must not start another check.
_local = threading.local()
_unchecked: set[str] = set()


def register(
    name: str, inputs: Callable[[], tuple[Tensor, ...]], takes_tf32: bool = False
) -> Callable[[Case], Case]:
    """Returns a decorator that makes a function the check of an operator."""

    def add(case: Case) -> Case:
        _checks[name] = _Check(case, inputs, takes_tf32)
        return case

    return add


def ensure_right(name: str, tensor: Tensor) -> None:
    """Raises RuntimeError if an operator is wrong on a GPU; does nothing on the CPU."""
    if is_gpu(tensor):
        _ensure(name, tensor.dtype, tensor.device)


# torch.compile calls this once, while it traces.
@assume_constant_result
def _ensure(name: str, dtype: torch.dtype, device: torch.device) -> None:
    tf32 = _checks[name].takes_tf32 and dtype == torch.float32 and tf32_switch()
    key = (name, dtype, device, tf32)
    if key not in _found and not getattr(_local, "checks", False):
        _look(key)
    sentence = _found.get(key)
    if sentence is not None:
        raise RuntimeError(sentence)


def _look(key: Key) -> None:
    name, dtype, device, tf32 = key
    if os.environ.get(ENVIRONMENT) == "0":
        _found[key] = None
        return
    if is_capturing(device):
        # During a capture no result can be read back; the next call outside it runs the check.
        if name not in _unchecked:
            _unchecked.add(name)
            warnings.warn(
                f"atrousx captures {name} before it has checked itself on {device}: call it once "
                "before the capture",
                RuntimeWarning,
                stacklevel=4,
            )
        return
    with _lock:
        if key in _found:
            return
        _local.checks = True
        try:
            wrong = _difference(_checks[name], dtype, device)
        finally:
            _local.checks = False
        _found[key] = None
        allowed = _ALLOWED_TF32 if tf32 else _ALLOWED[dtype]
        if wrong > allowed:
            _found[key] = (
                f"atrousx's {name} is wrong on {device} in {str(dtype)[6:]}: its result on a small "
                f"input differs from the CPU's by {wrong:.2g} ({allowed:.2g} is allowed). "
                "Compute on the CPU instead, and please report this with what 'atrousx info' "
                f"prints; {ENVIRONMENT}=0 uses it all the same"
            )


def _difference(check: _Check, dtype: torch.dtype, device: torch.device) -> float:
    """Returns the largest difference in results and gradients, relative to the CPU's maximum."""
    with _disable_current_modes(), torch.inference_mode(False), torch.enable_grad():
        given = check.inputs()
        own = _results(check.case, given, dtype, device)
        right = _results(check.case, given, dtype, torch.device("cpu"))
    return max(_relative(a.cpu(), b) for a, b in zip(own, right, strict=True))


def _results(
    case: Case, given: tuple[Tensor, ...], dtype: torch.dtype, device: torch.device
) -> list[Tensor]:
    inputs = [
        t.to(device, dtype).requires_grad_() if t.is_floating_point() else t.to(device)
        for t in given
    ]
    # torch.autocast fails for devices that do not support it.
    mixed = torch.is_autocast_enabled(device.type)
    with torch.autocast(device.type, enabled=False) if mixed else contextlib.nullcontext():
        results = case(*inputs)
    smooth = [r for r in results if r.requires_grad]
    wanted = [t for t in inputs if t.requires_grad]
    gradients: tuple[Tensor | None, ...] = ()
    if smooth:
        seeds = [_waves(r) for r in smooth]
        gradients = torch.autograd.grad(smooth, wanted, seeds, allow_unused=True)
    return [t.detach() for t in (*results, *gradients) if t is not None]


def _waves(like: Tensor) -> Tensor:
    """Returns numbers of both signs that are the same on every device."""
    return numbers(*like.shape).to(like.device, like.dtype)


def numbers(*size: int) -> Tensor:
    """Returns float64 numbers between -1 and 1 as inputs of cases; neighbours differ."""
    count = torch.Size(size).numel()
    return torch.arange(count, dtype=torch.float64).mul(1.7).add(0.3).sin().reshape(size)


def _relative(own: Tensor, right: Tensor) -> float:
    if own.shape != right.shape or own.dtype != right.dtype:
        return float("inf")
    if not right.is_floating_point():
        return 0.0 if torch.equal(own, right) else float("inf")
    peak = right.double().abs().max().item()
    error = (own.double() - right.double()).abs().max().item()
    # NaN is always an error.
    return error / max(peak, 1e-30) if error == error else float("inf")


def forget() -> None:
    """Forgets all results, so that every operator is checked again."""
    with _lock:
        _found.clear()
        _unchecked.clear()
