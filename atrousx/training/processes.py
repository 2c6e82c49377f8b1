"""Wraps a network for the processes that train it together."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .._processes import rank_and_world, summed
from ..models import recompute_activations
from ..models.segmenter import Segmenter
from .recipe import Recipe


def prepared(model: Segmenter, recipe: Recipe, device: torch.device) -> Segmenter:
    """Returns the network on its device, in the recipe's memory format.

    Normalisation uses the statistics of all processes on GPUs only: PyTorch has it for no others.
    """
    model = model.to(device)
    if recipe.recompute:
        recompute_activations(model)
    if recipe.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if recipe.sync_bn and device.type == "cuda" and rank_and_world()[1] > 1:
        model = cast(Segmenter, nn.SyncBatchNorm.convert_sync_batchnorm(model))
    return model


def parallel(model: Segmenter, recipe: Recipe) -> nn.Module:
    """Returns a module that computes the model's loss and shares the gradients of all processes."""
    if recipe.compile:
        # The loss stays outside: it counts the pixels of all processes.
        model.coarse_logits = torch.compile(model.coarse_logits)  # type: ignore[method-assign]
    if rank_and_world()[1] == 1:
        return model
    device = model.preprocess.mean.device
    ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)


@contextlib.contextmanager
def shared_only_if(last: bool, network: nn.Module) -> Iterator[None]:
    """Shares gradients in this backward pass only if it is the step's last one."""
    if last or not isinstance(network, DistributedDataParallel):
        yield
    else:
        with network.no_sync():
            yield


def mean_over_processes(value: Tensor) -> float:
    total: Any = summed(value.detach().double())
    return float(total) / rank_and_world()[1]
