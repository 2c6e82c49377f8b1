"""Choices as a dictionary, for checkpoints and for other processes."""

from __future__ import annotations

from typing import Any

import torch

from . import measure
from .geometry import Geometry
from .machine import build
from .table import Choice

_VERSION = 1


def state_dict() -> dict[str, Any]:
    """What the backend "measure" has chosen so far, to be saved in a training checkpoint.

    Loaded again, a resumed run computes each convolution as before, and so to the same bits.

    Returns:
        A dictionary of strings, numbers and lists, which ``torch.save`` stores and
        ``torch.load(..., weights_only=True)`` reads.

    Example:
        >>> import torch, atrousx
        >>> checkpoint = {"model": {}, "atrousx": atrousx.backend.state_dict()}
        >>> atrousx.backend.load_state_dict(checkpoint["atrousx"])
    """
    with measure.lock:
        choices = {geometry.text(): choice.numbers() for geometry, choice in measure.table}
    return {"version": _VERSION, "build": build(), "choices": choices}


def load_state_dict(state: dict[str, Any]) -> None:
    """Takes over the choices that :func:`state_dict` returned, here or in another process.

    They replace what this process has chosen for the same geometries on a device of the same name.
    Where another build of atrousx or PyTorch made them, a geometry's first call compares results
    once more, and keeps the choice unless atrousx's kernels are wrong in this build.

    Args:
        state: as :func:`state_dict` returns it.

    Raises:
        TypeError: ``state`` is not a dictionary.
        ValueError: it is not one that :func:`state_dict` has made; nothing is changed then.

    Example:
        >>> import atrousx
        >>> atrousx.backend.load_state_dict(atrousx.backend.state_dict())
    """
    if not isinstance(state, dict):
        raise TypeError(f"state must be a dict, got {type(state).__name__}")
    if state.get("version") != _VERSION or not isinstance(state.get("choices"), dict):
        raise ValueError(
            f"state must be what atrousx.backend.state_dict() returns (version {_VERSION}), "
            f"got keys {sorted(map(str, state))} of version {state.get('version')!r}"
        )
    verified = state.get("build") == build()
    loaded = []
    for text, numbers in state["choices"].items():
        try:
            choice = Choice.of_numbers(numbers, "loaded", verified)
            loaded.append((Geometry.parse(text), choice))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                "state must be what atrousx.backend.state_dict() returns, "
                f"got the choice {text!r}: {numbers!r}"
            ) from error
    with measure.lock:
        for geometry, choice in loaded:
            measure.keep(geometry, choice)


def broadcast(src: int = 0, group: torch.distributed.ProcessGroup | None = None) -> None:
    """Sends one rank's choices to all others, so that ranks compute by the same kernels.

    Each rank measures by itself, and times that lie close together may be decided differently. To
    call after a first step of training, by all ranks of the group: from then on they agree. What a
    later geometry's first call finds is a rank's own again, until the next broadcast.

    Args:
        src: the global rank whose choices are sent.
        group: the process group; None for the default one.

    Raises:
        RuntimeError: ``torch.distributed`` is not initialised.

    Example:
        >>> import torch, atrousx
        >>> if torch.distributed.is_initialized():
        ...     atrousx.backend.broadcast(src=0)
    """
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            "broadcast needs torch.distributed to be initialised: call init_process_group first"
        )
    held = [state_dict() if dist.get_rank() == src else None]
    dist.broadcast_object_list(held, src=src, group=group)
    if dist.get_rank() != src:
        assert held[0] is not None
        load_state_dict(held[0])
