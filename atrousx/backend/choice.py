"""The backend of this process, and how "auto" chooses between atrousx and PyTorch."""

from __future__ import annotations

import os
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .._library import assume_constant_result, is_gpu, only_torch
from .algorithm import current_points
from .geometry import is_channels_last
from .precision import get_precision
from .rule import INFERS, PACKED, PACKED_RELU, TRAINS, cpu_rule, current_limits

Backend = Literal["auto", "native", "torch", "measure"]
BACKENDS: tuple[str, ...] = get_args(Backend)
ENVIRONMENT = "ATROUSX_BACKEND"


def check_backend(name: str, value: object) -> None:
    if value not in BACKENDS:
        raise ValueError(f"{name} must be 'auto', 'native', 'torch' or 'measure', got {value!r}")


_default: Backend = os.environ.get(ENVIRONMENT, "auto")  # type: ignore[assignment]
check_backend(ENVIRONMENT, _default)


def set_backend(backend: Backend) -> None:
    """Sets the backend of all convolutions in the process that are called without a ``backend``.

    - "auto", the default, on CPUs with AVX2 or AVX-512: atrousx's kernels, except where a measured
      rule expects PyTorch's convolution to be faster. For training, the rule takes the three passes
      together; see ``benchmarks/tune.py``. Convolutions that minimal filtering computes (see
      :func:`atrousx.ops.atrous_conv2d`) always use atrousx's kernels. So does code that
      ``torch.compile`` or ``torch.export`` traces. On GPUs and other CPUs "auto" means "measure".
      Where atrousx has no kernels it means "torch": ROCm, MPS, XPU, or CUDA if only the CPU's
      kernels were compiled.
    - "native": always atrousx's kernels.
    - "torch": always ``torch.nn.functional.conv2d``, which also multiplies padding.
    - "measure": the first call of a geometry computes with both implementations, compares the
      results and times a few calls. The faster one is kept; PyTorch's must be 5 % faster to be
      chosen. Forward, grad-input and grad-weight are chosen separately. If the results differ by
      more than rounding explains, a RuntimeWarning is issued and PyTorch's convolution is used from
      then on. After four sizes of a layer were measured, the nearest of them decides for others.

    Choices of "measure" are kept for the process. They are also written to
    ``~/.cache/atrousx/choices.json`` for later processes. ``XDG_CACHE_HOME`` is respected;
    ``ATROUSX_CACHE`` names another file, or is 0 for no file.
    :func:`atrousx.backend.state_dict` returns the choices for a checkpoint.

    "measure" compares and times nothing in three cases: in code that ``torch.compile``,
    ``torch.export`` or a dispatch mode traces, while a CUDA graph is captured, and under
    ``torch.use_deterministic_algorithms(True)``. A geometry that was compared before keeps its
    choice. Under deterministic algorithms it uses atrousx's kernels if their results were right. A
    geometry that was never compared uses PyTorch's convolution.

    Under ``torch.jit.trace``, transforms of ``torch.func`` and forward-mode differentiation, "auto"
    and "measure" always use PyTorch's convolution.

    Only convolutions are timed. Other operators use atrousx's kernels wherever there are any. On a
    GPU each of them is checked once for each dtype against the CPU's operator. Upsampling is not
    timed, because PyTorch's gradient of it sums in an order that changes from run to run on GPUs.
    :func:`atrousx.ops.multi_rate_conv2d` is not timed, because a call of it asks for this kernel.
    If the branches are separate layers instead, each layer is measured.

    The environment variable ``ATROUSX_BACKEND`` sets the initial value.

    Args:
        backend: "auto", "native", "torch" or "measure".

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


def get_backend() -> Backend:
    """Returns the backend of convolutions that are called without one; see :func:`set_backend`.

    Example:
        >>> import atrousx
        >>> atrousx.get_backend() in ("auto", "native", "torch", "measure")
        True
    """
    return _default


def _undecidable(input: Tensor, weight: Tensor) -> bool:
    """Whether the CPU's rule does not apply, or would specialise traced code to one size."""
    return (
        torch.compiler.is_compiling()
        or input.device.type != "cpu"
        or any(isinstance(extent, torch.SymInt) for extent in (*input.shape, *weight.shape))
    )


def knows_torch_only() -> bool:
    """Whether the call runs under something that supports PyTorch's operators only.

    These are torch.jit.trace, transforms of torch.func and forward-mode differentiation.
    """
    return not torch.compiler.is_compiling() and (
        torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )


_HAS_LIMITS = current_limits() is not None


def measures(backend: str, input: Tensor) -> bool:
    """Whether the backend is "measure", or is "auto" on a device without measured limits."""
    if only_torch(input):
        return False
    return backend == "measure" or (
        backend == "auto" and (is_gpu(input) or (input.is_cpu and not _HAS_LIMITS))
    )


def needs_torch(backend: str, input: Tensor) -> bool:
    """Whether PyTorch was chosen, or atrousx has no kernels for the device."""
    return backend == "torch" or (backend != "native" and only_torch(input))


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
    """Whether to call PyTorch's convolution, if the backend does not measure."""
    if needs_torch(backend, input):
        return True
    if backend != "auto":
        return False
    if knows_torch_only():
        return True
    if _undecidable(input, weight):
        return False
    operands = [t for t in (input, weight, bias) if t is not None]
    mixed = torch.is_autocast_enabled("cpu")
    if torch.is_grad_enabled() and any(t.requires_grad for t in operands):
        use = TRAINS
    elif packed:
        use = PACKED_RELU if clips else PACKED
    else:
        use = INFERS
    return cpu_rule(
        torch.get_autocast_dtype("cpu") if mixed else input.dtype,
        mixed,
        any(is_channels_last(t) for t in operands),
        (input.shape, weight.shape, stride, sides, dilation),
        use,
        get_precision(),
    )


def winograd_points(
    backend: str,
    input: Tensor,
    weight: Tensor,
    stride: tuple[int, int],
    sides: tuple[int, int, int, int],
    dilation: tuple[int, int],
    frozen: bool,
) -> tuple[int, ...]:
    """Returns how many points a transformed Winograd filter has, in rows and in columns.

    ``winograd_plan.h`` defines them. Returns () where Winograd would not pay or must not be used.
    ``frozen``: filters are transformed once, not at every call.
    """
    if backend == "torch" or knows_torch_only() or _undecidable(input, weight):
        return ()
    conv = (input.shape, weight.shape, stride, sides, dilation)
    return current_points(conv, frozen, input.dtype)


def allows_tf32(input: Tensor) -> bool:
    """Whether float32 may be rounded to TF32: on a GPU, if PyTorch's switch allows it."""
    return input.dtype == torch.float32 and is_gpu(input) and tf32_switch()


# A constant for torch.compile, which cannot trace the reading of PyTorch's switch.
@assume_constant_result
def tf32_switch() -> bool:
    # At run time torch replaces the module by an object that has this attribute.
    return bool(torch.backends.cudnn.conv.fp32_precision == "tf32")  # type: ignore[attr-defined]
