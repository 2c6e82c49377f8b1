"""Fair timing: functions run in turns, by the clock of the device, with PyTorch's best settings."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch

# Larger than the L2 cache of any GPU. To overwrite it takes about 0.1 ms. In this time Python
# queues the following launches, so the events measure the GPU and not Python.
FLUSH_BYTES = 512 << 20


@dataclass(frozen=True)
class Measured:
    """Seconds per call of one function, one number for each round."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def fastest(self) -> float:
        return min(self.samples)


def interleaved(
    functions: Mapping[str, Callable[[], object]],
    device: torch.device,
    seconds: float,
    least_rounds: int = 3,
    most_rounds: int = 200,
) -> dict[str, Measured]:
    """Times functions in turns, so that a busy or throttled moment affects all of them equally.

    Every second round runs in reverse order. Rounds repeat until ``seconds`` have passed, including
    the warm-up. There are at least ``least_rounds`` and at most ``most_rounds`` rounds.
    """
    clock = _gpu_clock(device) if device.type == "cuda" else _cpu_clock
    start = time.perf_counter()
    for function in functions.values():
        function()  # allocates, and lets the library choose its algorithm
    names = list(functions)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(most_rounds):
        if turn >= least_rounds and time.perf_counter() - start >= seconds:
            break
        for name in reversed(names) if turn % 2 else names:
            samples[name].append(clock(functions[name]))
    return {name: Measured(tuple(values)) for name, values in samples.items()}


def _cpu_clock(function: Callable[[], object]) -> float:
    # Short calls are repeated, so that the cost of the clock and the interpreter is negligible.
    calls, start = 0, time.perf_counter()
    while True:
        function()
        calls += 1
        elapsed = time.perf_counter() - start
        if elapsed > 1e-3:
            return elapsed / calls


def _gpu_clock(device: torch.device) -> Callable[[Callable[[], object]], float]:
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)

    def clock(function: Callable[[], object]) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flush.zero_()
        begin.record()
        function()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) * 1e-3

    return clock


@contextlib.contextmanager
def fair_settings(dtype_name: str, algorithms: int = 0) -> Iterator[None]:
    """Sets PyTorch's best settings, and allows TF32 only for the dtype "tf32".

    cuDNN tries ``algorithms`` of its algorithms, all of them for 0.
    """
    allowed = dtype_name == "tf32"
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        with torch.backends.cudnn.flags(
            enabled=True, benchmark=True, benchmark_limit=algorithms, allow_tf32=allowed
        ):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
