"""The description of a network in a checkpoint: its builder's arguments and its preprocessing."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

from ..preprocess import Preprocess
from .architecture import BUILDERS, SAME_TENSORS, Architecture, architecture_of
from .layouts import Weights

Network = Mapping[str, Any]


def preprocess_state(preprocess: Preprocess) -> dict[str, Any]:
    """Returns what a checkpoint stores of the preprocessing."""
    mean, std = (values.flatten().tolist() for values in (preprocess.mean, preprocess.std))
    return {"mean": mean, "std": std, "bgr": preprocess.bgr}


def checked_network(value: object, origin: str) -> Network | None:
    """Returns the description under "network", or None if that is something else.

    A version of DeepLab that is unknown here is something else, too.

    Raises:
        ValueError: the description is damaged.
    """
    if not isinstance(value, Mapping) or not isinstance(value.get("version"), str):
        return None
    version, arguments = value["version"], value.get("arguments")
    if version not in BUILDERS:
        return None
    known = inspect.signature(BUILDERS[version]).parameters
    if not isinstance(arguments, Mapping) or not all(
        name in known and _is_plain(argument) for name, argument in arguments.items()
    ):
        raise ValueError(f"{origin} describes its network by arguments that {version} lacks")
    if not _is_preprocess(value.get("preprocess")):
        raise ValueError(f"{origin} describes no valid preprocessing of its network")
    stride = value.get("output_stride")
    if stride is not None and type(stride) is not int:
        raise ValueError(f"{origin} describes the output stride {stride!r}")
    # JSON has no tuples.
    plain = {k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()}
    return {**value, "arguments": plain}


def _is_plain(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return all(type(item) is int for item in value)
    return value is None or type(value) in (bool, int, float, str)


def _is_preprocess(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and value.keys() == {"mean", "std", "bgr"}
        and isinstance(value["bgr"], bool)
        and all(
            isinstance(value[name], (list, tuple))
            and len(value[name]) == 3
            and all(type(v) in (int, float) and math.isfinite(v) for v in value[name])
            for name in ("mean", "std")
        )
    )


def check_against_tensors(told: Architecture, weights: Weights) -> None:
    """Raises ValueError if a file describes another network than its tensors belong to.

    This comes before the network is built, so that a damaged number cannot fill the memory.
    """
    seen = architecture_of(dict(weights))
    if seen is None:
        return
    both = seen.arguments.keys() & told.arguments.keys() - {"width"}
    if all(one.arguments.get("layout") in SAME_TENSORS for one in (told, seen)):
        both -= {"layout"}
    if (
        seen.version != told.version
        or any(told.arguments[name] != seen.arguments[name] for name in both)
        or not _are_near(*(a.arguments.get("width", 1.0) for a in (told, seen)))
    ):
        raise ValueError(f"the file describes {told}, but its tensors are those of {seen}")


def _are_near(described: object, found: object) -> bool:
    """Whether a network of the described width is not far larger than the tensors.

    Several widths give the same channels, so that they need not be equal.
    """
    assert isinstance(found, (int, float))
    return isinstance(described, (int, float)) and 0 < described <= 1.5 * found + 0.1
