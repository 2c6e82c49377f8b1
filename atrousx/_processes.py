"""The processes of ``torch.distributed``, or the only one where none are started."""

from __future__ import annotations

import torch
from torch import Tensor, distributed


def rank_and_world() -> tuple[int, int]:
    """Returns the number of this process and the number of processes."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def is_first() -> bool:
    """Whether this process is the one that prints and writes."""
    return rank_and_world()[0] == 0


def summed(counts: Tensor) -> Tensor:
    """Returns the sum of ``counts`` over all processes, which must all call this function."""
    if rank_and_world()[1] == 1:
        return counts
    # NCCL sums what is on a GPU, gloo what is in host memory.
    on_gpu = distributed.get_backend() == "nccl"
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    total = counts.to(device, copy=True)
    distributed.all_reduce(total)
    return total.to(counts.device)
