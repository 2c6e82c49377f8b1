"""Who computes a convolution: atrousx's kernels or PyTorch's own, and the rule of "auto"."""

from __future__ import annotations

import os
from typing import Literal, NamedTuple, get_args

import torch

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
      to be faster: see ``benchmarks/NOTES.md``. On CUDA, in code that ``torch.compile`` or
      ``torch.export`` traces, and on shapes not known in advance it is always atrousx's.
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


# The least live fraction from which PyTorch's convolution is the faster one, by memory format
# (channels_last or not) and by purpose (with gradients or without): the less padding there is to
# skip, the less skipping it gains. 0: always, 2: never.
_LIMITS = {(False, False): 0.7, (False, True): 0.7, (True, False): 0, (True, True): 2}
# Under so many outputs, gathering NCHW outweighs the product.
_FEW_OUTPUTS = 64
_FEW_OUTPUTS_LIMITS = {(False, False): 0, (False, True): 0.7, (True, False): 2, (True, True): 0.7}
# PyTorch computes dilated depthwise gradients on a slow path.
_DEPTHWISE_LIMITS = {(False, False): 0.95, (False, True): 2, (True, False): 0.95, (True, True): 2}


def torch_is_faster(problem: Problem) -> bool:
    """The rule of "auto" on the CPU, measured: see benchmarks/NOTES.md.

    Types other than float32 have not been measured: they stay with atrousx's kernels.
    """
    if problem.dtype != torch.float32:
        return False
    limits = _LIMITS
    if problem.depthwise:
        limits = _DEPTHWISE_LIMITS
    elif problem.outputs < _FEW_OUTPUTS:
        limits = _FEW_OUTPUTS_LIMITS
    return problem.live >= limits[problem.channels_last, problem.trains]
