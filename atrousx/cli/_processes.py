"""Processes that ``torchrun`` starts: their group, their device, and which of them prints."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
from torch import distributed
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

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
    distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=_store(),
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
    )
    try:
        yield device
    finally:
        distributed.destroy_process_group()


def _store() -> PrefixStore:
    """Returns the store of ``torchrun``, with other keys after each restart.

    With PyTorch's default keys, processes that were restarted read the addresses of the dead ones
    and wait for them (seen with PyTorch 2.13 and gloo).
    """
    environment = os.environ
    has_agent = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = TCPStore(
        environment["MASTER_ADDR"],
        int(environment["MASTER_PORT"]),
        is_master=not has_agent and environment["RANK"] == "0",
    )
    restarts = environment.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore(f"restart_{restarts}", store)
