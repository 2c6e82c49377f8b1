"""One check: a case in one dtype and layout on one device, against float64 on the CPU."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .accuracy import allowed_error, error_of, worst
from .cases import Case, Tensors, placed, rounded, seed
from .devices import Device, synchronize

OK, WRONG, NOT_RUN = "ok", "WRONG", "not run"


@dataclass(frozen=True)
class Check:
    """What came of it; errors are norms, relative to nothing."""

    operator: str
    pass_name: str
    case: str
    dtype: str
    layout: str
    status: str = NOT_RUN
    error: float | None = None
    allowed: float | None = None
    message: str = ""


def planned(cases: list[Case], device: Device) -> list[tuple[Case, Check]]:
    """Every check of these cases that the device has the dtype for, none of them run yet."""
    found = []
    for case in cases:
        names = (case.operator, case.pass_name, case.name)
        for dtype in case.dtypes:
            if dtype not in device.dtypes:
                continue
            found += [(case, Check(*names, dtype, layout)) for layout in case.layouts]
    return found


class References:
    """The inputs of cases, and their exact results, in float64 on the CPU.

    Of the case that was asked for last alone: checks come case by case.
    """

    def __init__(self) -> None:
        self._case: Case | None = None
        self._made: Tensors = ()
        self._exact: dict[tuple[bool, bool], Tensors] = {}

    def inputs(self, case: Case, dtype: str) -> Tensors:
        if case is not self._case:
            self._case, self._exact = case, {}
            seed(case)
            self._made = case.make()
        return tuple(rounded(t, dtype) for t in self._made)

    def exact(self, case: Case, dtype: str, by_torch: bool) -> Tensors:
        """By the CPU's operator in float64, or by plain PyTorch."""
        halves = dtype in ("float16", "bfloat16")
        inputs = self.inputs(case, dtype)
        if (halves, by_torch) not in self._exact:
            results = case.twin(inputs) if by_torch else case.run(inputs, False)
            self._exact[halves, by_torch] = tuple(t.detach() for t in results)
        return self._exact[halves, by_torch]


def run_check(case: Case, check: Check, device: Device, references: References) -> Check:
    """Runs it; whatever is raised makes it WRONG."""
    result = functools.partial(
        Check, check.operator, check.pass_name, check.case, check.dtype, check.layout
    )
    try:
        # The CPU's float64 is judged by PyTorch's, all others by the CPU's float64.
        by_torch = device.is_cpu and check.dtype == "float64"
        exact = references.exact(case, check.dtype, by_torch)
        given = references.inputs(case, check.dtype)
        here = tuple(placed(t, check.dtype, check.layout, device.torch) for t in given)
        results, steady = _twice(case, check.dtype == "tf32", here, device)
        torchs = (
            None
            if by_torch or not case.judged
            else _errors_of_torch(case, check, given, exact, device)
        )
        pairs = []
        for i, (got, wanted) in enumerate(zip(results, exact, strict=True)):
            measure = None if torchs is None else torchs[i]
            allowed = allowed_error(check.dtype, case.length, wanted, measure)
            pairs.append((error_of(got, wanted), allowed))
    except Exception as raised:  # a check's crash is its result
        return result(WRONG, message=_one_line(raised))
    error, allowed = worst(pairs)
    if not error <= allowed:
        return result(WRONG, error, allowed, f"error {error:.2g}, allowed {allowed:.2g}")
    if not steady:
        return result(WRONG, error, allowed, "two runs of it differ")
    return result(OK, error, allowed)


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _twice(case: Case, tf32: bool, given: Tensors, device: Device) -> tuple[Tensors, bool]:
    """The results, and whether a second run gives the same bits.

    In the first run PyTorch fills with NaN whatever memory it hands out, so that what a kernel
    forgets to write shows.
    """
    with _poisoned_memory():
        first = tuple(t.detach().to("cpu") for t in case.run(given, tf32))
    synchronize(device.torch)
    again = [t.detach().to("cpu") for t in case.run(given, tf32)]
    synchronize(device.torch)
    # NaN is the same as NaN here: it is an error of another kind.
    steady = all(
        torch.allclose(a.double(), b.double(), 0, 0, equal_nan=True)
        for a, b in zip(first, again, strict=True)
    )
    return first, steady


@contextlib.contextmanager
def _poisoned_memory() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before, warn_only=warns)


def _errors_of_torch(
    case: Case, check: Check, given: Tensors, exact: Tensors, device: Device
) -> list[float] | None:
    """How far off PyTorch's own is in the same dtype; None where it does not serve."""
    where = device.torch if device.has_torch_twins else torch.device("cpu")
    if check.dtype == "tf32" and where.type == "cpu":
        return None
    tensors = tuple(placed(t, check.dtype, check.layout, where) for t in given)
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=check.dtype == "tf32"):
            results = case.twin(tensors)
        return [error_of(got, wanted) for got, wanted in zip(results, exact, strict=True)]
    except (RuntimeError, NotImplementedError):
        synchronize(device.torch)
        return None
