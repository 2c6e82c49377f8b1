"""Calls a residual stage so that only the results of its convolutions are kept for its gradient."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

# What a residual stage computes once. All else in it is cheap.
_KEPT = ("aten::convolution", "atrousx::atrous_conv2d")


def recomputed(stage: nn.Module, input: Tensor) -> Tensor:
    """Calls a stage of a ResNet such that its backward pass recomputes all but convolutions."""
    result: Tensor = checkpoint(
        stage,
        input,
        use_reentrant=False,
        preserve_rng_state=False,  # there is no dropout in a stage
        context_fn=lambda: _contexts(stage),
    )
    return result


def _contexts(stage: nn.Module) -> tuple[Any, Any]:
    """Returns the surroundings of the forward pass and of its repetition."""
    forward, again = create_selective_checkpoint_contexts(_policy)
    return forward, _repetition(stage, again)


def _policy(_: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op.name() in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE


@contextlib.contextmanager
def _repetition(stage: nn.Module, again: Any) -> Iterator[None]:
    """Keeps the running statistics, which the forward pass has already changed."""
    layers = [layer for layer in stage.modules() if isinstance(layer, _BatchNorm)]
    before = [(layer.momentum, layer.num_batches_tracked) for layer in layers]
    try:
        for layer in layers:
            layer.momentum, layer.num_batches_tracked = 0.0, None
        with again:
            yield
    finally:
        for layer, (momentum, tracked) in zip(layers, before, strict=True):
            layer.momentum, layer.num_batches_tracked = momentum, tracked
