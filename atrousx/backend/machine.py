"""What a measured time belongs to: a device as its driver runs it, and the libraries."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

import torch

from .._library import core, cuda
from .._version import __version__


def machine_of(device: torch.device) -> str:
    """The device and what it is driven by, in words: the same wherever times would be, too."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        multiprocessors = properties.multi_processor_count
        return " | ".join((properties.name, f"{multiprocessors} SM", _driver(), build()))
    threads = torch.get_num_threads()
    device_name = _cpu() if device.type == "cpu" else device.type
    return " | ".join((device_name, core.cpu_isa, f"{threads} threads", build()))


def is_capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured from a device's calls: nothing can be waited for then.

    Or from those of the current device, which forbids to wait for any other.
    """
    if device.type != "cuda":
        return False
    if torch.cuda.is_current_stream_capturing():
        return True
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


@functools.cache
def build() -> str:
    """The libraries whose kernels are compared: another build's may be wrong where these are not.

    A library is known by its size and the time it was written at, as Python knows its own files.
    """
    files = [library.file.stat() for library in (core, cuda) if library is not None]
    stamps = "+".join(f"{file.st_size:x}.{file.st_mtime_ns:x}" for file in files)
    return f"torch {torch.__version__} | atrousx {__version__} {stamps}"


@functools.cache
def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


@functools.cache
def _driver() -> str:
    try:
        version = Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except (OSError, IndexError):
        version = "driver unknown"
    cudnn = torch.backends.cudnn.version()
    return f"{' '.join(version.split())} | CUDA {torch.version.cuda} | cuDNN {cudnn}"
