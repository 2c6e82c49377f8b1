"""Describes the machine: versions, driver, GPUs and their clocks, the CPU."""

from __future__ import annotations

import contextlib
import datetime
import platform
import re
import shutil
import subprocess
from pathlib import Path

import torch

import atrousx

from .. import _library

_CLOCKS = ("clocks.sm", "clocks.max.sm", "clocks.mem", "power.draw", "temperature.gpu")


def cpu_name() -> str:
    with contextlib.suppress(OSError):
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        if found:
            return f"{found[1].strip()} ({torch.backends.cpu.get_cpu_capability()})"
    return platform.processor() or platform.machine()


def _nvidia_smi(index: int, *fields: str) -> list[str]:
    """Asks nvidia-smi for fields of a GPU; returns "unknown" for each if that fails."""
    unknown = ["unknown"] * len(fields)
    if shutil.which("nvidia-smi") is None:
        return unknown
    query = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        run = [*query, f"--id={index}"]
        done = subprocess.run(run, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return unknown
    values = [value.strip() for value in done.stdout.strip().split(",")]
    return values if len(values) == len(fields) and done.returncode == 0 else unknown


def driver() -> str:
    return _nvidia_smi(0, "driver_version")[0]


def clocks(device: torch.device) -> dict[str, str]:
    """Returns a GPU's present clocks and their maximum in MHz, its power in W and its temperature.

    The dictionary is empty for other devices.
    """
    if device.type != "cuda":
        return {}
    return dict(zip(_CLOCKS, _nvidia_smi(device.index or 0, *_CLOCKS), strict=True))


def machine() -> dict[str, str]:
    """Returns versions and hardware by their names in the report."""
    core, cuda = _library.core, _library.cuda
    now = datetime.datetime.now(datetime.timezone.utc)
    rows = {
        "date": now.isoformat(timespec="seconds"),
        "atrousx": f"{atrousx.__version__} (compiled against torch {core.built_with_torch})",
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}",
        "CUDA kernels": "not compiled: no GPU is examined"
        if cuda is None
        else f"CUDA {cuda.built_with_cuda} for {cuda.architectures}",
        "driver": driver() if torch.cuda.is_available() else "none that PyTorch sees",
        "python": f"{platform.python_version()}, {platform.platform()}",
        "CPU": cpu_name(),
        "CPU kernels": f"{core.cpu_isa}, {torch.get_num_threads()} threads",
    }
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            rows[f"cuda:{index}"] = _gpu(index)
    return rows


def _gpu(index: int) -> str:
    found = torch.cuda.get_device_properties(index)
    return (
        f"{found.name}, compute capability {found.major}.{found.minor}, "
        f"{found.multi_processor_count} multiprocessors, {found.total_memory / 2**30:.0f} GiB"
    )
