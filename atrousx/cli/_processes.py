"""Processes that ``torchrun`` starts: their group, their device, and which of them prints."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
from torch import distributed

from ._shared import CommandError


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Joins the processes that ``torchrun`` has started, and yields the device of this one.

    Without ``torchrun`` there is one process, and the device is the given one.

    Raises:
        CommandError: there are more processes than GPUs.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield device
        return
    if device.type == "cuda":
        own, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if own >= count:
            raise CommandError(f"--device cuda: PyTorch sees {count} GPUs for {own + 1} processes")
        device = torch.device("cuda", own)
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        distributed.destroy_process_group()
