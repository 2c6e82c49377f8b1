"""Saves and loads choices as a dictionary, for checkpoints and for other processes."""

from __future__ import annotations

from typing import Any

import torch

from . import measure
from .geometry import Geometry
from .machine import build
from .table import Choice

_VERSION = 2
# The sources that are stored with a choice; every other source is stored as "measured".
_HOW = ("measured", "nearest", "no memory")


def state_dict() -> dict[str, Any]:
    """Returns the choices that the backend "measure" has made so far, for a training checkpoint.

    A resumed run that loads them computes each convolution with the same kernels and gets the same
    bits. This holds on a device of the same name, and on the CPU with the same number of threads.

    Returns:
        A dictionary of strings, numbers and lists. ``torch.save`` can store it and
        ``torch.load(..., weights_only=True)`` can read it.

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
    """Loads choices that :func:`state_dict` returned in this or another process.

    They replace all choices of the same layers on a device of the same name, for every size of the
    map. From then on the cache file adds no choices to these layers. If another build of atrousx or
    PyTorch made the choices, the first call of each geometry compares the results again. It keeps
    the choice unless atrousx's kernels are wrong in this build.

    Args:
        state: the dictionary that :func:`state_dict` returned.

    Raises:
        TypeError: ``state`` is not a dictionary.
        ValueError: ``state`` was not made by :func:`state_dict`. In this case nothing changes.

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
    """Sends the choices of one rank to all others, so that all ranks use the same kernels.

    Each rank measures alone, so two ranks may choose differently if the times are close. Call this
    function on all ranks of the group after the first training step. After the call all ranks use
    the choices of rank ``src``, whatever their caches hold. A geometry that is new after that is
    again measured by each rank alone, until the next broadcast.

    Args:
        src: the global rank whose choices are sent.
        group: the process group; None for the default group.

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
