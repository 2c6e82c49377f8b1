"""Compares and times both implementations at a geometry's first call, on generated numbers."""

from __future__ import annotations

import functools
import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .accuracy import Agreement, compare
from .geometry import Geometry, Operands, in_room, room_like
from .passes import Call, native_pass, torch_pass
from .table import Choice

# PyTorch's convolution must be faster by this factor to be chosen.
TORCH_MUST_GAIN = 1.05
_LEAST_ROUNDS, _MOST_ROUNDS = 3, 10
_ENOUGH_SECONDS = 0.05
# One round is enough if both calls take more than _LONG seconds and one takes _CLEAR times as long
# as the other.
_LONG, _CLEAR = 0.01, 2.0
_LAUNCHES = 4  # calls between two CUDA events


def try_both(geometry: Geometry, operands: Operands, times: bool = True) -> Choice:
    """Compares both implementations on a geometry and, with ``times``, finds the faster one.

    The caller's tensors provide sizes, strides and alignment; their values are neither read nor
    written. The values are generated, so that a map of zeros or infinities cannot hide a wrong
    kernel. Their seed is the same everywhere.
    """
    with _undisturbed(operands.input):
        try:
            return _try_both(geometry, _made_like(geometry, operands), times)
        except torch.OutOfMemoryError:
            return Choice(native=False, agrees=False, source="no memory")


def _try_both(geometry: Geometry, operands: Operands, times: bool) -> Choice:
    described = (geometry.pass_, operands, geometry.options, geometry.ending)
    native_result, failure = _result_of(lambda: native_pass(*described)())
    torch_result, _ = _result_of(lambda: torch_pass(*described)())
    if native_result is None:
        _warn(geometry, f"atrousx's kernels failed ({failure})")
        return Choice(native=False, agrees=False, error=math.inf)

    def exact() -> Tensor:
        wide = Operands(*(None if t is None else t.double() for t in operands))  # type: ignore[arg-type]
        return torch_pass(geometry.pass_, wide, geometry.options, geometry.ending)()

    verdict = compare(native_result, torch_result, geometry, exact)
    if not verdict.agrees:
        _warn_of(geometry, verdict)
        return Choice(native=False, agrees=False, error=verdict.error)
    if torch_result is None:
        return Choice(native=True, agrees=True, error=verdict.error)
    del native_result, torch_result
    if not times:
        return Choice(native=True, agrees=True, error=verdict.error)
    own, other = faster(native_pass(*described), torch_pass(*described), operands.input)
    return Choice(own <= other * TORCH_MUST_GAIN, True, own, other, verdict.error)


def _result_of(call: Call) -> tuple[Tensor | None, Exception | None]:
    """Returns the result of a pass or, if it fails, None and the error.

    If one implementation fails, the other one can still compute the pass.
    """
    try:
        return call(), None
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        return None, error


def faster(native: Call, by_torch: Call, like: Tensor) -> tuple[float, float]:
    """Returns the least seconds per call of each implementation.

    They run in turn, so that a busy moment of the machine slows both.
    """
    least = [math.inf, math.inf]
    spent = 0.0
    for done in range(1, _MOST_ROUNDS + 1):
        for who, call in enumerate((native, by_torch)):
            seconds = seconds_of(call, like)
            spent += seconds
            least[who] = min(least[who], seconds)
        clear = min(least) > _LONG and max(least) > _CLEAR * min(least)
        if clear or (done >= _LEAST_ROUNDS and spent > _ENOUGH_SECONDS):
            break
    return least[0], least[1]


def seconds_of(call: Callable[[], object], like: Tensor) -> float:
    """Returns how many seconds a call takes on the device of ``like``."""
    if not like.is_cuda:
        began = time.perf_counter()
        call()
        return time.perf_counter() - began
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(_LAUNCHES):
        call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1000 / _LAUNCHES


@contextmanager
def _undisturbed(like: Tensor) -> Iterator[None]:
    """Disables gradients and selects the tensor's device. The caller has disabled autocast."""
    with torch.no_grad():
        if like.is_cuda:
            with torch.cuda.device(like.device):
                yield
        else:
            yield


def _made_like(geometry: Geometry, operands: Operands) -> Operands:
    """Returns operands of the caller's sizes, strides and alignment, filled with numbers of mean 0.

    They are scaled so that the result is about 1.
    """
    size = max(1, geometry.terms) ** -0.25
    made = (None if t is None else _filled(t, size, n) for n, t in enumerate(operands))
    return Operands(*made)  # type: ignore[arg-type]


def _filled(like: Tensor, size: float, place: int) -> Tensor:
    """Returns a filled tensor with the strides and alignment of ``like``.

    A kernel may be wrong for views only. Gaps between elements are filled, too, so that a kernel
    that reads them gives another result.
    """
    flat = room_like(like, like.device)
    # Each operand gets different numbers.
    numbers = (_numbers(like.device).roll(997 * place) * size).to(like.dtype)
    whole = flat.numel() - flat.numel() % len(numbers)
    flat[:whole].view(-1, len(numbers)).copy_(numbers)
    flat[whole:].copy_(numbers[: flat.numel() - whole])
    return in_room(flat, like)


@functools.lru_cache(maxsize=16)
def _numbers(device: torch.device) -> Tensor:
    # 4093 is prime, so the repetition does not coincide with channels or rows of a layer.
    own = torch.Generator().manual_seed(0)
    return torch.randn(4093, generator=own).to(device)


def _warn_of(geometry: Geometry, verdict: Agreement) -> None:
    said = f"differ by {verdict.error:.2g} of the result ({verdict.allowed:.2g} is allowed)"
    _warn(geometry, f"atrousx's kernels and PyTorch's {said}")


def _warn(geometry: Geometry, what: str) -> None:
    warnings.warn(
        f"{what}: {geometry.words()}. PyTorch's convolution computes it from now on; please report "
        "this with what 'atrousx info' prints",
        RuntimeWarning,
        stacklevel=2,
    )
