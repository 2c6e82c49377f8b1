"""Runs one check: a case in one dtype and layout on one device, against float64 on the CPU."""

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
    """A check and its result; ``error`` and ``allowed`` are absolute norms."""

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
    """Returns all checks of these cases in the dtypes of the device, marked as not run."""
    found = []
    for case in cases:
        names = (case.operator, case.pass_name, case.name)
        for dtype in case.dtypes:
            if dtype not in device.dtypes:
                continue
            found += [(case, Check(*names, dtype, layout)) for layout in case.layouts]
    return found


class References:
    """The inputs of a case and its exact results, in float64 on the CPU.

    Only the last case is kept, because checks run case by case.
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
        """Returns the float64 results of the CPU's operator, or of plain PyTorch."""
        halves = dtype in ("float16", "bfloat16")
        inputs = self.inputs(case, dtype)
        if (halves, by_torch) not in self._exact:
            results = case.twin(inputs) if by_torch else case.run(inputs, False)
            self._exact[halves, by_torch] = tuple(t.detach() for t in results)
        return self._exact[halves, by_torch]


def run_check(case: Case, check: Check, device: Device, references: References) -> Check:
    """Runs a check and returns its result; every exception makes it WRONG."""
    result = functools.partial(
        Check, check.operator, check.pass_name, check.case, check.dtype, check.layout
    )
    try:
        # PyTorch is the reference of the CPU's float64, which is the reference of everything else.
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
    except Exception as raised:  # an exception is a result, too
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
    """Returns the results, and whether a second run gives the same bits.

    In the first run PyTorch fills new memory with NaN, which shows elements that a kernel does not
    write.
    """
    with _poisoned_memory():
        first = tuple(t.detach().to("cpu") for t in case.run(given, tf32))
    synchronize(device.torch)
    again = [t.detach().to("cpu") for t in case.run(given, tf32)]
    synchronize(device.torch)
    # NaN equals NaN here, because a NaN is reported as an error elsewhere.
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
    """Returns the errors of PyTorch's operator in the same dtype; None if it cannot be used."""
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
