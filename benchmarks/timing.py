"""Shared parts of the benchmarks: fair timing, the measured peak, the machine, and CSV."""

from __future__ import annotations

import contextlib
import csv
import ctypes
import datetime
import gc
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

import atrousx
from atrousx.doctor.machine import cpu_name, driver
from atrousx.doctor.timing import interleaved

# The benchmarks' names of dtypes. "tf32" is float32 in memory, rounded by the GPU's tensor cores.
# "float32" switches that off, so that both libraries compute the same result.
DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


def peak_memory(function: Callable[[], object], device: torch.device) -> float:
    """Returns the MiB that one call adds to the memory in use, with its result; NaN if unknown."""
    gc.collect()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # freed memory that is still held would hide growth
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        before = _status_kib("VmRSS")
        function()
        return (_status_kib("VmHWM") - before) / 2**10
    return float("nan")


def _status_kib(name: str) -> int:
    found = re.search(rf"{name}:\s*(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1])


class Peak:
    """The highest speed of the machine. ``measured_by`` says how it was measured.

    On a CPU in float32 it is multiply-adds in registers, if a C++ compiler is available. Otherwise
    it is a large square matrix product by PyTorch. A busy machine cannot show its peak. So it is
    measured again before every line of a benchmark, and the highest value is kept.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._registers = None
        if dtype == torch.float32 and device.type == "cpu":
            self._registers = _compile_fma_peak()
        self.measured_by = "a large matrix product"
        if self._registers is not None:
            self.measured_by = "multiply-adds in registers"
        n = 8192 if device.type == "cuda" else 1024
        if dtype == torch.float64:
            n //= 2
        self._device = device
        self._operations = 2 * n**3
        self._factors = tuple(torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        self._product = torch.empty_like(self._factors[0])
        self.gflops = 0.0
        self.again(rounds=10)

    def again(self, rounds: int = 3) -> float:
        if self._registers is not None:
            speeds = [_in_threads(self._registers, torch.get_num_threads()) for _ in range(rounds)]
            self.gflops = max(self.gflops, *speeds)
            return self.gflops
        timed = interleaved({"mm": self._multiply}, self._device, 0, rounds, rounds)
        self.gflops = max(self.gflops, self._operations / timed["mm"].fastest * 1e-9)
        return self.gflops

    def _multiply(self) -> None:
        torch.mm(*self._factors, out=self._product)


def _compile_fma_peak() -> Callable[[int], float] | None:
    """Returns fma_peak.cpp's loop, from rounds to operations, or None without a compiler."""
    source = Path(__file__).with_name("fma_peak.cpp")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "fma_peak.so")
        command = [os.environ.get("CXX", "c++"), "-O3", "-march=native", "-ffp-contract=fast"]
        try:
            subprocess.run(
                [*command, "-shared", "-fPIC", str(source), "-o", str(library)],
                check=True,
                capture_output=True,
            )
            loop = ctypes.CDLL(str(library)).fma_peak
        except (OSError, subprocess.CalledProcessError):
            return None
    loop.restype, loop.argtypes = ctypes.c_double, [ctypes.c_long, ctypes.c_void_p]

    def run(rounds: int) -> float:
        result = ctypes.c_float()
        return float(loop(rounds, ctypes.byref(result)))

    return run


def _in_threads(loop: Callable[[int], float], threads: int, rounds: int = 2_000_000) -> float:
    """Returns the GFLOP/s of as many loops at once as there are threads."""
    with ThreadPoolExecutor(threads) as pool:
        start = time.perf_counter()
        operations = sum(pool.map(loop, [rounds] * threads))
        return operations / (time.perf_counter() - start) * 1e-9


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Returns the first columns of every CSV row: the machine and the versions."""
    on_gpu = device.type == "cuda"
    onednn = re.search(r"v(\d[\d.]*)", "".join(re.findall(r"MKL-DNN.*", torch.__config__.show())))
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "commit": _commit(),
        "atrousx": atrousx.__version__,
        "device": device.type,
        "machine": torch.cuda.get_device_name(device) if on_gpu else cpu_name(),
        "driver": driver() if on_gpu else "",
        "torch": torch.__version__,
        "library": f"cuDNN {torch.backends.cudnn.version()}"
        if on_gpu
        else f"oneDNN {onednn[1] if onednn else 'unknown'}",
        "threads": "" if on_gpu else torch.get_num_threads(),
    }


def _commit() -> str:
    git = [
        "git",
        "-C",
        str(Path(__file__).parent),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=10",
    ]
    try:
        return subprocess.run(git, capture_output=True, text=True).stdout.strip() or "unknown"
    except FileNotFoundError:
        return "unknown"


class CsvWriter:
    """Appends rows to a CSV file. An existing file must have the same header."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, row: Mapping[str, Any]) -> None:
        header = list(row)
        new = not self.path.exists() or self.path.stat().st_size == 0
        if not new:
            with self.path.open(newline="") as file:
                found = next(csv.reader(file))
            if found != header:
                raise SystemExit(f"{self.path} has other columns: {', '.join(found)}")
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, header)
            if new:
                writer.writeheader()
            writer.writerow(row)
