"""Finds the tensors in what a training script saved: under which names, with which prefixes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torch import Tensor

from .layouts import recognise
from .words import abridged

# Names under which scripts save the weights, and the running average (EMA) of the weights.
PLAIN = (
    *("model", "model_state", "model_state_dict", "state_dict", "net", "network", "weights"),
    *("params", "module", "shadow"),
)
AVERAGE = (
    *("ema", "model_ema", "ema_model", "ema_state_dict", "state_dict_ema", "model_ema_state_dict"),
    *("ema_model_state_dict", "ema_weights", "params_ema"),
)
# Prefixes that wrappers around a network put before all keys.
AVERAGE_PREFIXES = ("ema_model.", "model_ema.", "ema.")
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", *AVERAGE_PREFIXES)
# What wrappers of single layers put into the middle of keys. No layer has such a name.
INSIDE = ("._orig_mod.", "._fsdp_wrapped_module.", "._checkpoint_wrapped_module.")
# Tensors beside the network: counters, the weights of a loss, and what profilers left.
COUNTERS = ("n_averaged", "initted", "step", "epoch", "iteration")
LOSSES = ("criterion.", "loss.", "loss_fn.")
PROFILES = ("total_ops", "total_params")
MOST_LEVELS = 8
# Keys of a backbone that lack "backbone.".
BARE = re.compile(r"(?:conv1|bn1|layer\d|features|stem|blocks)\.")


class Unwrapped(NamedTuple):
    """The tensors of a checkpoint by the network's own keys, and where they were.

    Attributes:
        tensors: the tensors.
        path: the names of the dictionaries around them, from the outside.
        prefix: what was removed from all keys.
        ignored: what else the checkpoint holds.
        is_average: whether these are the averaged weights.
        has_average: whether the checkpoint holds averaged weights.
    """

    tensors: dict[str, Tensor]
    path: tuple[str, ...] = ()
    prefix: str = ""
    ignored: tuple[str, ...] = ()
    is_average: bool = False
    has_average: bool = False


class _Holder(NamedTuple):
    tensors: Mapping[str, Tensor]
    path: tuple[str, ...]
    is_average: bool
    ignored: tuple[str, ...]


def unwrap(content: object, origin: str, ema: bool) -> Unwrapped:
    """Returns the weights in a file's content, or their running average.

    Raises:
        ValueError: there are no tensors by name, or no average though ``ema`` asks for it.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"{origin} holds a {_kind(content)}, not a state_dict")
    found = list(_holders(content))
    # Layers are in modules, so that the keys of a network have dots.
    if not any("." in key for holder in found for key in holder.tensors):
        found = _under_another_name(content) or found
    holders = [part for holder in found for part in _parts(holder)]
    plain, average = ([h for h in holders if h.is_average is wanted] for wanted in (False, True))
    if not holders:
        held = [f"{_kind(value)} at {key!r}" for key, value in content.items()]
        raise ValueError(
            f"{origin} must hold tensors by name, got {', '.join(held[:4]) or 'nothing'}"
        )
    if ema and not average:
        names = dict.fromkeys(".".join(h.path) or "the weights alone" for h in plain)
        told = abridged(tuple(names))
        raise ValueError(f"{origin} holds no average (EMA) of the weights, but {told}")
    chosen = (average if ema or not plain else plain)[0]
    tensors, prefix = _without_prefixes(chosen.tensors)
    return Unwrapped(
        tensors,
        chosen.path,
        prefix,
        (*_beside(content, chosen.path), *chosen.ignored),
        chosen.is_average,
        bool(average),
    )


def _holders(content: object) -> Iterator[_Holder]:
    """Yields the dictionaries that hold tensors, the plain weights first."""
    seen: set[tuple[int, bool]] = set()

    def search(value: object, path: tuple[str, ...], average: bool) -> Iterator[_Holder]:
        # A damaged file may hold a dictionary that contains itself.
        if not isinstance(value, Mapping) or (id(value), average) in seen:
            return
        seen.add((id(value), average))
        if len(path) > MOST_LEVELS:
            return
        kinds = ((PLAIN, average), (AVERAGE, True))
        names = [(name, is_average) for group, is_average in kinds for name in group]
        inner = [
            holder
            for name, is_average in names
            if name in value
            for holder in search(value[name], (*path, name), is_average)
        ]
        tensors = _tensors(value)
        # Beside wrapped weights a checkpoint may hold a few tensors, for instance a loss.
        has_own = any("." in key for key in tensors) if inner else bool(tensors)
        if has_own and all(holder.is_average for holder in inner):
            others = tuple(str(key) for key in value if key not in tensors)
            yield _Holder(tensors, path, average, others)
        yield from inner

    return search(content, (), False)


def _under_another_name(content: Mapping[object, object]) -> list[_Holder]:
    """Returns the one dictionary that holds tensors by keys with dots, whatever its name."""
    found = []
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Mapping):
            continue
        tensors = _tensors(value)
        if any("." in key for key in tensors):
            others = tuple(str(key) for key in value if key not in tensors)
            found.append(_Holder(tensors, (name,), False, others))
    return found if len(found) == 1 else []


def _tensors(value: Mapping[object, object]) -> dict[str, Tensor]:
    return {k: v for k, v in value.items() if isinstance(k, str) and isinstance(v, Tensor)}


def _parts(holder: _Holder) -> Iterator[_Holder]:
    """Yields the weights and the average that one dictionary tells apart by prefixes."""
    tensors, others = {}, list(holder.ignored)
    for key, value in holder.tensors.items():
        if key in COUNTERS or key.startswith(LOSSES) or key.endswith(PROFILES):
            others.append(key)
        else:
            tensors[key] = value
    average = {k: v for k, v in tensors.items() if k.startswith(AVERAGE_PREFIXES)}
    plain = {k: v for k, v in tensors.items() if k not in average}
    if plain:
        yield _Holder(plain, holder.path, holder.is_average, tuple(others))
    if average:
        yield _Holder(average, holder.path, True, tuple(others))


def _without_prefixes(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Returns the tensors by the network's own keys, and the prefix that all keys had."""
    result, removed = _stripped(tensors)
    for segment in INSIDE:
        result = {key.replace(segment, "."): value for key, value in result.items()}
    result, more = _stripped(result)
    return _with_backbone(result), removed + more


def _stripped(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Removes prefixes that all keys have, as long as no layout is recognised."""
    result, removed = dict(tensors), ""
    while recognise(result) is None:
        prefix = next((p for p in PREFIXES if all(key.startswith(p) for key in result)), None)
        if prefix is None or not result:
            break
        result = {key.removeprefix(prefix): value for key, value in result.items()}
        removed += prefix
    return result, removed


def _with_backbone(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Puts "backbone." before the backbone's keys, where a whole DeepLab's weights lack it."""
    heads = [value for key, value in tensors.items() if key.startswith("classifier.")]
    # The classifier of torchvision's vgg16 has matrices, a DeepLab's has convolutions.
    if not any(value.dim() == 4 for value in heads):
        return tensors
    named = {f"backbone.{k}" if BARE.match(k) else k: v for k, v in tensors.items()}
    layout = recognise(named)
    return named if layout is not None and layout.version else tensors


def _beside(content: Mapping[object, object], path: tuple[str, ...]) -> list[str]:
    """Returns the names beside the wrapped weights, at every level."""
    names, level = [], content
    for name in path:
        names += [str(key) for key in level if key != name]
        inner = level[name]
        assert isinstance(inner, Mapping)
        level = inner
    return names


def _kind(value: object) -> str:
    return type(value).__name__
