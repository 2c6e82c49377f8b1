"""Who computes a convolution: atrousx's kernels or PyTorch's own, and the rule of "auto"."""

from __future__ import annotations

import functools
import os
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backend.precision import get_precision
from ._geometry import live_share, output_size

_points = torch.ops.atrousx._atrous_conv2d_points.default

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


class Problem(NamedTuple):
    """What the rule looks at: of a convolution on the CPU, all that it was measured over."""

    dtype: torch.dtype
    channels_last: bool
    live: float  # the share of multiply-adds that touch data
    depthwise: bool
    outputs: int
    trains: bool  # whether gradients will be wanted
    packed: bool = False  # whether atrousx's kernels have the weight packed (optimize)
    channels: int = 512  # of the input, that an output sums over
    grouped: bool = False  # into groups of more than one channel
    # These matter to depthwise convolutions.
    dilated: bool = True
    strided: bool = False
    multiplied: bool = False  # whether a channel has several outputs
    taps: int = 9
    walks: bool = False  # whether csrc's cpu_depthwise_walks.h may serve it: by taps and channels
    clips: bool = False  # whether a ReLU follows, which atrousx's kernels apply as they store


# The least live fraction from which PyTorch's convolution is the faster one: the less padding there
# is to skip, the less skipping it gains. In the default layout; in channels_last, with gradients
# and without.
_CONTIGUOUS_LIMIT = 0.85
_CHANNELS_LAST_TRAINS_LIMIT, _CHANNELS_LAST_LIMIT = 0.97, 0.8
_PACKED_LIMIT = 0.9  # in both memory formats
_BFLOAT16_LIMIT = 0.9  # in both memory formats, with gradients and without
# Under so many outputs only dilated filters are worth packing a map for.
_FEW_OUTPUTS = 64
_FEW_OUTPUTS_LIMIT = 0.9
# Sums over fewer channels are too short for atrousx's products: in channels_last, where PyTorch has
# kernels for them; in channels_last without gradients; in groups.
_FEW_CHANNELS, _FEW_TO_READ, _FEW_OF_A_GROUP = 64, 512, 128
_GROUPED_LIMIT = 0.5
# Depthwise, of dilated filters in channels_last without gradients.
_DEPTHWISE_LIMITS = {torch.float32: 0.97, torch.bfloat16: 0.95}
# What a walk takes at a time of float32 or bfloat16, with AVX-512: fewer channels go another way.
_WALK_CHANNELS = 32
# From how many taps on a depthwise convolution is bound by multiply-adds, not by bytes.
_MANY_TAPS = 10


def torch_is_faster(problem: Problem) -> bool:
    """The rule of "auto" on the CPU, measured: see benchmarks/NOTES.md.

    float64 was not measured and stays with atrousx's kernels, as does float16, in which these were
    1.8 to 180 times as fast wherever they were measured.
    """
    if problem.dtype not in (torch.float32, torch.bfloat16):
        return False
    if problem.multiplied:
        reduced = problem.dtype == torch.bfloat16
        return not problem.trains or (problem.channels_last and not reduced)
    if problem.depthwise:
        return problem.channels_last and _torch_is_faster_depthwise(problem)
    if problem.channels_last and problem.channels < _FEW_CHANNELS:
        return True
    return problem.live >= _limit(problem)


def _limit(problem: Problem) -> float:
    """The least live fraction from which PyTorch's convolution is the faster one."""
    reduced = problem.dtype == torch.bfloat16
    if problem.grouped and (reduced or problem.channels_last or problem.channels < _FEW_OF_A_GROUP):
        return _GROUPED_LIMIT
    if reduced:
        return _BFLOAT16_LIMIT
    if problem.outputs < _FEW_OUTPUTS:
        return _FEW_OUTPUTS_LIMIT
    if problem.packed:
        return _PACKED_LIMIT
    if not problem.channels_last:
        return _CONTIGUOUS_LIMIT
    if problem.trains:
        return _CHANNELS_LAST_TRAINS_LIMIT
    return _CHANNELS_LAST_LIMIT if problem.channels >= _FEW_TO_READ else 0


def _torch_is_faster_depthwise(problem: Problem) -> bool:
    """The rule of depthwise convolutions in channels_last."""
    few = problem.taps < _MANY_TAPS
    if problem.strided or problem.walks:
        return False
    if problem.trains:
        # PyTorch leaves its fast path for the gradients of all others.
        return problem.dtype == torch.bfloat16 and few and not problem.dilated
    if problem.clips and few:
        return False
    return not problem.dilated or problem.live >= _DEPTHWISE_LIMITS[problem.dtype]


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
    return _rule(
        torch.get_autocast_dtype("cpu") if mixed else input.dtype,
        mixed,
        any(_is_channels_last(t) for t in operands),
        input.shape,
        weight.shape,
        stride,
        sides,
        dilation,
        torch.is_grad_enabled() and any(t.requires_grad for t in operands),
        packed,
        clips,
        get_precision(),
    )


def _is_channels_last(tensor: Tensor) -> bool:
    """As PyTorch's suggest_memory_format, which takes as long as a small convolution."""
    if tensor.dim() != 4:
        return False
    _, channels, height, width = tensor.shape
    n, c, h, w = tensor.stride()
    return c > 0 and c * channels <= w and w * width <= h and h * height <= n != c


# Networks have few sizes, and to decide takes as long as a small convolution.
@functools.lru_cache(maxsize=1024)
def _rule(
    dtype: torch.dtype,
    mixed: bool,
    channels_last: bool,
    size: torch.Size,
    weight: torch.Size,
    stride: tuple[int, int],
    sides: tuple[int, int, int, int],
    dilation: tuple[int, int],
    trains: bool,
    packed: bool,
    clips: bool,
    precision: str,
) -> bool:
    # Grad-weight takes fewer products wherever frozen filters do.
    frozen = packed or trains
    minimal = precision == "default" and not mixed
    if minimal and _sizes_points(size, weight, stride, sides, dilation, frozen, dtype):
        return False
    map_size, taps = size[-2:], weight[2:]
    outputs = output_size(map_size, taps, stride, sides, dilation)
    return torch_is_faster(
        Problem(
            dtype=dtype,
            channels_last=channels_last,
            live=live_share(map_size, taps, outputs, stride, sides, dilation),
            depthwise=weight[1] == 1,
            outputs=weight[0],
            trains=trains,
            packed=packed,
            channels=weight[1],
            grouped=1 < weight[1] < size[-3],
            dilated=any(d > 1 and k > 1 for d, k in zip(dilation, taps, strict=True)),
            strided=max(stride) > 1,
            multiplied=weight[1] == 1 and weight[0] > size[-3] > 1,
            taps=taps.numel(),
            walks=taps[0] <= 3 and taps[1] == 3 and weight[0] == size[-3] >= _WALK_CHANNELS,
            clips=clips,
        )
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

    The points of a transformed filter, rows and columns, as ``csrc/atrous_conv2d/winograd.h`` has
    them; empty elsewhere. ``frozen``: filters are transformed once, not at every call.
    """
    if backend == "torch" or get_precision() == "highest":
        return ()
    if _knows_torch_only() or _undecidable(input, weight):
        return ()
    return _sizes_points(input.shape, weight.shape, stride, sides, dilation, frozen, input.dtype)


@functools.lru_cache(maxsize=1024)
def _sizes_points(
    size: torch.Size,
    weight: torch.Size,
    stride: tuple[int, int],
    sides: tuple[int, int, int, int],
    dilation: tuple[int, int],
    frozen: bool,
    dtype: torch.dtype,
) -> tuple[int, ...]:
    if weight[1] <= 1 or weight[2:] != (3, 3):
        return ()
    batched = size if len(size) == 4 else (1, *size)
    groups = batched[1] // weight[1]
    return tuple(_points(batched, weight, stride, sides, dilation, groups, frozen, dtype))


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
