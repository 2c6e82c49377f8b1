"""The devices of this machine and the properties that the doctor needs.

Other types of device than the CPU and CUDA can be examined by their name in PyTorch, but they are
not timed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .. import _library
from .cases.case import ALL, PLAIN

# The device types that timing.py has clocks for.
TIMED = ("cpu", "cuda")


@dataclass(frozen=True)
class Device:
    """A device by its name in PyTorch, with the dtypes to check; a CPU has 0 multiprocessors."""

    name: str
    dtypes: tuple[str, ...] = ALL
    multiprocessors: int = 0

    @property
    def torch(self) -> torch.device:
        return torch.device(self.name)

    @property
    def is_cpu(self) -> bool:
        return self.torch.type == "cpu"

    @property
    def can_be_timed(self) -> bool:
        return self.torch.type in TIMED

    @property
    def has_torch_twins(self) -> bool:
        """Whether PyTorch's own operators run on the device; otherwise the twins run on the CPU."""
        return self.torch.type in TIMED


def found() -> list[str]:
    """Returns the devices with atrousx kernels: the CPU, then every GPU that PyTorch sees."""
    names = ["cpu"]
    if _library.cuda is not None and torch.cuda.is_available():
        names += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return names


def device_named(name: str) -> Device:
    """Returns the device of a name.

    Raises:
        ValueError: the device does not exist, or atrousx has no kernels for it.
    """
    if name.startswith("cuda") and _library.cuda is None:
        raise ValueError(
            f"atrousx was built without its CUDA kernels, which {name} needs: install it again "
            "where nvcc is on the PATH"
        )
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"there is no device {name!r} here: {reason}") from error
    if device.type == "cpu":
        return Device("cpu", PLAIN)
    full = name if device.index is not None else f"{name}:0"
    if device.type != "cuda":
        return Device(full, ALL, _multiprocessors(device))
    properties = torch.cuda.get_device_properties(full)
    # TF32 came with compute capability 8.0.
    return Device(full, ALL if properties.major >= 8 else PLAIN, properties.multi_processor_count)


def _multiprocessors(device: torch.device) -> int:
    """Returns the number for a device that is neither CPU nor CUDA: its own, or a large GPU's."""
    module = getattr(torch, device.type, None)
    try:
        return int(module.get_device_properties(device).multi_processor_count)  # type: ignore[union-attr]
    except (AttributeError, RuntimeError, TypeError):
        return 132


def is_alive(device: torch.device) -> bool:
    """Whether the device still computes.

    After some CUDA errors, such as an illegal address, the process can no longer use the device.
    """
    try:
        return bool(torch.ones(2, device=device).sum().item() == 2)
    except RuntimeError:
        return False


def synchronize(device: torch.device) -> None:
    """Waits for the device, so that errors of kernels are raised here and not in a later call."""
    if device.type != "cpu":
        torch.ones(1, device=device).item()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
