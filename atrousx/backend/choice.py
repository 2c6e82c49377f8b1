"""Who computes a convolution: the process's choice, and what "auto" makes of it."""

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
    """Sets who computes convolutions that name no backend of their own, in the whole process.

    - "auto", the default: on CPUs with AVX2 or AVX-512 atrousx's kernels, except where a measured
      rule expects PyTorch's own to be faster, the three passes of training taken together: see
      ``benchmarks/tune.py``. What minimal filtering serves (:func:`atrousx.ops.atrous_conv2d`)
      stays with atrousx's, and so does code that ``torch.compile`` or ``torch.export`` traces. On
      GPUs and other CPUs it is "measure", and PyTorch's where atrousx has no kernels at all (ROCm,
      MPS, XPU, or CUDA where only the CPU's were compiled).
    - "native": always atrousx's kernels.
    - "torch": always ``torch.nn.functional.conv2d``, padding multiplied and all.
    - "measure": a geometry's first call computes by both, compares the results, and times a few
      calls; the faster one is kept, PyTorch's where it wins by 5 %. Forward and both gradients are
      chosen apart. Where the results differ by more than rounding explains, PyTorch's convolution
      computes from then on, and a RuntimeWarning says so. After four sizes of a layer the nearest
      one decides for others. Choices are kept for the process, and for later ones in
      ``~/.cache/atrousx/choices.json`` (``XDG_CACHE_HOME`` is followed; ``ATROUSX_CACHE`` is
      another file, or 0 for none); :func:`atrousx.backend.state_dict` puts them into a checkpoint.
      Nothing is timed in code that ``torch.compile``, ``torch.export`` or a dispatch mode traces,
      while a CUDA graph is captured, and under ``torch.use_deterministic_algorithms(True)``. What
      was compared before keeps its choice there; under deterministic algorithms atrousx's kernels
      run wherever they were right. PyTorch's convolution computes what was never compared.

    Under ``torch.jit.trace``, ``torch.func``'s transforms and forward-mode differentiation "auto"
    and "measure" always take PyTorch's.

    Only convolutions are timed. Other operators run atrousx's kernels wherever there are any; on a
    GPU each is checked once in a dtype against the CPU's. Upsampling is not timed, since PyTorch's
    gradient of it sums on GPUs in an order that changes from run to run.
    :func:`atrousx.ops.multi_rate_conv2d` is not, because it is asked for by name: its branches as
    layers of their own are measured.

    The environment variable ``ATROUSX_BACKEND`` sets the first value.

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
    """Says who computes convolutions that name no backend of their own; see :func:`set_backend`.

    Example:
        >>> import atrousx
        >>> atrousx.get_backend() in ("auto", "native", "torch", "measure")
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


def knows_torch_only() -> bool:
    """Whether what listens to the call knows PyTorch's operators alone, not atrousx's.

    torch.jit.trace, a transform of torch.func, forward-mode differentiation.
    """
    return not torch.compiler.is_compiling() and (
        torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )


_HAS_LIMITS = current_limits() is not None


def measures(backend: str, input: Tensor) -> bool:
    """Whether "measure" is meant: by its name or, where no limits are known, by "auto"."""
    if only_torch(input):
        return False
    return backend == "measure" or (
        backend == "auto" and (is_gpu(input) or (input.is_cpu and not _HAS_LIMITS))
    )


def needs_torch(backend: str, input: Tensor) -> bool:
    """Whether PyTorch must compute: it was chosen, or atrousx has no kernels for the device."""
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
    """Whether PyTorch's convolution is the one to call, where nothing is measured."""
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
        input.shape,
        weight.shape,
        stride,
        sides,
        dilation,
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
    """How the CPU's kernels convolve 3x3 filters by fewer products than live taps, where that pays.

    The points of a transformed filter, rows and columns, as ``winograd_plan.h`` has
    them; empty elsewhere. ``frozen``: filters are transformed once, not at every call.
    """
    if backend == "torch" or knows_torch_only() or _undecidable(input, weight):
        return ()
    return current_points(input.shape, weight.shape, stride, sides, dilation, frozen, input.dtype)


def allows_tf32(input: Tensor) -> bool:
    """Whether float32 may be rounded to TF32: on CUDA, by PyTorch's own switch for convolutions."""
    return input.dtype == torch.float32 and is_gpu(input) and tf32_switch()


# A constant to torch.compile, which cannot look into PyTorch's switches.
@assume_constant_result
def tf32_switch() -> bool:
    # The attribute belongs to an object that torch puts in the module's place.
    return bool(torch.backends.cudnn.conv.fp32_precision == "tf32")  # type: ignore[attr-defined]
