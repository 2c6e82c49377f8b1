"""Who computes a convolution: atrousx's kernels or PyTorch's own, and the rule of "auto"."""

from __future__ import annotations

import os
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from .rule import cpu_rule, sizes_points

Backend = Literal["auto", "native", "torch"]
BACKENDS: tuple[str, ...] = get_args(Backend)
ENVIRONMENT = "ATROUSX_BACKEND"


def check_backend(name: str, value: object) -> None:
    if value not in BACKENDS:
        raise ValueError(f"{name} must be 'auto', 'native' or 'torch', got {value!r}")


_default: str = os.environ.get(ENVIRONMENT, "auto")
check_backend(ENVIRONMENT, _default)


def set_backend(backend: Backend) -> None:
    """Sets who computes convolutions that name no backend of their own, in the whole process.

    - "auto", the default: atrousx's kernels, except where the measured rule expects PyTorch's own
      to be faster, the three passes of training taken together: see ``benchmarks/NOTES.md``. What
      minimal filtering serves (:func:`atrousx.ops.atrous_conv2d`) stays with atrousx's. On CUDA,
      in code that ``torch.compile`` or ``torch.export`` traces, and on shapes not known in advance
      it is always atrousx's; under ``torch.jit.trace`` and ``torch.func``'s transforms always
      PyTorch's.
    - "native": always atrousx's kernels.
    - "torch": always ``torch.nn.functional.conv2d``, padding multiplied and all.

    The environment variable ``ATROUSX_BACKEND`` sets the first value.

    Args:
        backend: "auto", "native" or "torch".

    Raises:
        ValueError: any other value.

    Example:
        >>> import atrousx
        >>> before = atrousx.get_backend()
        >>> atrousx.set_backend("native")
        >>> atrousx.get_backend()
        'native'
        >>> atrousx.set_backend(before)
    """
    global _default
    check_backend("backend", backend)
    _default = backend


def get_backend() -> str:
    """Says who computes convolutions that name no backend of their own; see :func:`set_backend`.

    Example:
        >>> import atrousx
        >>> atrousx.get_backend() in ("auto", "native", "torch")
        True
    """
    return _default


def _undecidable(input: Tensor, weight: Tensor) -> bool:
    """Whether no rule of the CPU applies, or to ask would tie traced code to one size."""
    return (
        torch.compiler.is_compiling()
        or input.device.type != "cpu"
        or any(isinstance(extent, torch.SymInt) for extent in (*input.shape, *weight.shape))
    )


def _knows_torch_only() -> bool:
    """Whether torch.jit.trace or a transform of torch.func runs: neither knows our operators."""
    return not torch.compiler.is_compiling() and (
        torch._C._get_tracing_state() is not None
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def torch_computes(
    backend: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    sides: tuple[int, int, int, int],
    dilation: tuple[int, int],
    packed: bool = False,
    clips: bool = False,
) -> bool:
    """Whether PyTorch's convolution is the one to call, by the backend and its rule."""
    if backend != "auto":
        return backend == "torch"
    if _knows_torch_only():
        return True
    if _undecidable(input, weight):
        return False
    operands = [t for t in (input, weight, bias) if t is not None]
    mixed = torch.is_autocast_enabled("cpu")
    return cpu_rule(
        torch.get_autocast_dtype("cpu") if mixed else input.dtype,
        mixed,
        any(is_channels_last(t) for t in operands),
        input.shape,
        weight.shape,
        stride,
        sides,
        dilation,
        torch.is_grad_enabled() and any(t.requires_grad for t in operands),
        packed,
        clips,
    )


def is_channels_last(tensor: Tensor) -> bool:
    """As PyTorch's suggest_memory_format, which takes as long as a small convolution."""
    if tensor.dim() != 4:
        return False
    _, channels, height, width = tensor.shape
    n, c, h, w = tensor.stride()
    return c > 0 and c * channels <= w and w * width <= h and h * height <= n != c


def winograd_points(
    backend: str,
    input: Tensor,
    weight: Tensor,
    stride: tuple[int, int],
    sides: tuple[int, int, int, int],
    dilation: tuple[int, int],
    frozen: bool,
) -> tuple[int, ...]:
    """How the CPU's kernels convolve 3x3 filters by fewer products than live taps, where that pays.

    The points of a transformed filter, rows and columns, as ``csrc/atrous_conv2d/winograd.h`` has
    them; empty elsewhere. ``frozen``: filters are transformed once, not at every call.
    """
    if backend == "torch" or _knows_torch_only() or _undecidable(input, weight):
        return ()
    return sizes_points(input.shape, weight.shape, stride, sides, dilation, frozen, input.dtype)


def convolve_by_torch(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    sides: tuple[int, int, int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Tensor:
    top, left, bottom, right = sides
    if (top, left) != (bottom, right):
        input, (top, left) = F.pad(input, (left, right, top, bottom)), (0, 0)
    return F.conv2d(input, weight, bias, stride, (top, left), dilation, groups)


def allows_tf32(input: Tensor) -> bool:
    """Whether float32 may be rounded to TF32: on CUDA, by PyTorch's own switch for convolutions."""
    return input.dtype == torch.float32 and input.is_cuda and tf32_switch()


# A constant to torch.compile, which cannot look into PyTorch's switches.
@torch.compiler.assume_constant_result
def tf32_switch() -> bool:
    # The attribute belongs to an object that torch puts in the module's place.
    return bool(torch.backends.cudnn.conv.fp32_precision == "tf32")  # type: ignore[attr-defined]
