"""Choices as a dictionary, for checkpoints and for other processes."""

from __future__ import annotations

from typing import Any

import torch

from . import measure
from .geometry import Geometry
from .machine import build
from .table import Choice

_VERSION = 2
# How a choice was come by, where that matters to what it may decide; all others were measured.
_HOW = ("measured", "nearest", "no memory")


def state_dict() -> dict[str, Any]:
    """What the backend "measure" has chosen so far, to be saved in a training checkpoint.

    Loaded again, a resumed run computes each convolution as before, and so to the same bits: on a
    device of the same name, on the CPU with as many threads.

    Returns:
        A dictionary of strings, numbers and lists, which ``torch.save`` stores and
        ``torch.load(..., weights_only=True)`` reads.

    Example:
        >>> import torch, atrousx
        >>> checkpoint = {"model": {}, "atrousx": atrousx.backend.state_dict()}
        >>> atrousx.backend.load_state_dict(checkpoint["atrousx"])
    """
    with measure.lock:
        choices = {geometry.text(): _entry(choice) for geometry, choice in measure.table}
    return {"version": _VERSION, "build": build(), "choices": choices}


def _entry(choice: Choice) -> list[Any]:
    how = choice.source if choice.source in _HOW else "measured"
    return [*choice.numbers(), how, choice.verified]


def _choice(entry: Any, of_this_build: bool) -> Choice:
    *numbers, how, verified = entry
    if how not in _HOW or not isinstance(verified, bool):
        raise ValueError(f"not a choice: {entry}")
    return Choice.of_numbers(
        numbers, "loaded" if how == "measured" else how, of_this_build and verified
    )


def load_state_dict(state: dict[str, Any]) -> None:
    """Takes over the choices that :func:`state_dict` returned, here or in another process.

    They replace all that this process knows of the same layers, whatever the size of the map, on a
    device of the same name; the cache adds nothing to them from then on. Where another build of
    atrousx or PyTorch made them, a geometry's first call compares results once more, and keeps the
    choice unless atrousx's kernels are wrong in this build.

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
    of_this_build = state.get("build") == build()
    loaded = []
    for text, numbers in state["choices"].items():
        try:
            loaded.append((Geometry.parse(text), _choice(numbers, of_this_build)))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                "state must be what atrousx.backend.state_dict() returns, "
                f"got the choice {text!r}: {numbers!r}"
            ) from error
    with measure.lock:
        measure.replace(loaded)


def broadcast(src: int = 0, group: torch.distributed.ProcessGroup | None = None) -> None:
    """Sends one rank's choices to all others, so that ranks compute by the same kernels.

    Each rank measures by itself, and times that lie close together may be decided differently. To
    call after a first step of training, by all ranks of the group: from then on they agree on what
    ``src`` has run, whatever their caches hold. What a later geometry's first call finds is again
    the rank's own, until the next broadcast.

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
    if dist.get_rank() == src:
        with measure.lock:
            measure.table.seal()
    else:
        assert held[0] is not None
        load_state_dict(held[0])
