"""Describes what a measured time is valid for: the device, its driver and the libraries."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

import torch

from .._library import core, cuda
from .._version import __version__


def machine_of(device: torch.device) -> str:
    """Describes device, driver and libraries; a measured time holds where this text is equal."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        multiprocessors = properties.multi_processor_count
        return " | ".join((properties.name, f"{multiprocessors} SM", _driver(), build()))
    threads = torch.get_num_threads()
    device_name = _cpu() if device.type == "cpu" else device.type
    return " | ".join((device_name, core.cpu_isa, f"{threads} threads", build()))


def is_capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured on this device or on the current one.

    During a capture the host must not wait for any GPU.
    """
    if device.type != "cuda":
        return False
    if torch.cuda.is_current_stream_capturing():
        return True
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


@functools.cache
def build() -> str:
    """Returns a description of the libraries whose kernels are compared.

    A comparison is valid for one build only. A library is identified by its size and modification
    time, as Python identifies source files.
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
