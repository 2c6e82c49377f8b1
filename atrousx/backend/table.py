"""The choices of this process: by geometry and, once a layer has a few, by the nearest of them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from .geometry import Geometry

# Of a layer's sizes so many are measured; the nearest of them then decides for all others.
FEW = 4
# So many of those decisions are kept for a layer. Sizes beyond that are decided anew at each call,
# alike, because the sizes that were measured stay the same.
MOST_NEAREST = 1024


class Choice(NamedTuple):
    """Who computes a geometry, and what that was seen by."""

    native: bool  # atrousx's kernels, not PyTorch's convolution
    agrees: bool  # atrousx's result was compared and is right
    native_seconds: float = math.nan
    torch_seconds: float = math.nan
    error: float = math.nan  # the root mean square of the difference, over the result's
    source: str = "measured"  # or "cached", "loaded", "nearest"; "no memory": not compared
    verified: bool = True  # false: another build made it, and this one compares once more

    @property
    def counts(self) -> bool:
        """Whether it was found out at its own size, so that it may decide for others."""
        return self.verified and self.source not in ("nearest", "no memory")

    def numbers(self) -> list[Any]:
        """What is stored of it."""
        times = (self.native_seconds, self.torch_seconds)
        return [self.native, self.agrees, *times, self.error]

    @staticmethod
    def of_numbers(numbers: Any, source: str, verified: bool = True) -> Choice:
        native, agrees, native_seconds, torch_seconds, error = numbers
        if not isinstance(native, bool) or not isinstance(agrees, bool) or (native > agrees):
            raise ValueError(f"not a choice: {numbers}")
        times = (float(native_seconds), float(torch_seconds))
        return Choice(native, agrees, *times, float(error), source, verified)


class Table:
    """Not safe for threads: its users hold a lock."""

    def __init__(self) -> None:
        self._layers: dict[Geometry, dict[Geometry, Choice]] = defaultdict(dict)
        # Layers that a checkpoint or another process decides: the cache adds nothing to them.
        self._sealed: set[Geometry] = set()

    def find(self, geometry: Geometry) -> Choice | None:
        """The choice of a geometry or, of a layer that has a few, of the nearest one."""
        known = self._layers.get(geometry.layer)
        if known is None:
            return None
        found = known.get(geometry)
        return self._nearest(geometry, known) if found is None else found

    def decide(self, geometry: Geometry) -> Choice | None:
        """The same, for a call that goes by it: what the nearest size decides is kept, too."""
        found = self.find(geometry)
        if found is not None and found.source == "nearest":
            known = self._layers[geometry.layer]
            if sum(choice.source == "nearest" for choice in known.values()) < MOST_NEAREST:
                known.setdefault(geometry, found)
        return found

    @staticmethod
    def _nearest(geometry: Geometry, known: dict[Geometry, Choice]) -> Choice | None:
        """By the logarithm of the batch's pixels; never a kernel that was wrong at one size."""
        compared = {g: c for g, c in known.items() if c.counts}
        if len(compared) < FEW:
            return None
        wrong = [choice for choice in compared.values() if not choice.agrees]
        if wrong:
            return wrong[0]._replace(source="nearest")
        at = math.log(max(1, geometry.pixels))
        nearest = min(compared, key=lambda g: (abs(math.log(max(1, g.pixels)) - at), g))
        return compared[nearest]._replace(source="nearest")

    def put(self, geometry: Geometry, choice: Choice) -> None:
        known = self._layers[geometry.layer]
        known[geometry] = choice
        if choice.counts and not choice.agrees:
            # A kernel that is wrong at one size must not run at those that were not compared.
            for other in [g for g, c in known.items() if c.source == "nearest"]:
                del known[other]

    def add(self, geometry: Geometry, choice: Choice) -> None:
        """Keeps what is there already: a choice, once made, is kept for the run."""
        if geometry.layer not in self._sealed:
            self._layers[geometry.layer].setdefault(geometry, choice)

    def replace(self, choices: Iterable[tuple[Geometry, Choice]]) -> None:
        """Puts these in the place of all that is known of their layers, and seals the layers.

        What else was measured of a layer might be the nearest of some size, and decide otherwise
        than where these choices come from.
        """
        layers: dict[Geometry, dict[Geometry, Choice]] = defaultdict(dict)
        for geometry, choice in choices:
            layers[geometry.layer][geometry] = choice
        self._layers.update(layers)
        self._sealed.update(layers)

    def seal(self) -> None:
        """Has the cache add nothing to the layers that there are."""
        self._sealed.update(self._layers)

    def __iter__(self) -> Iterator[tuple[Geometry, Choice]]:
        for layer in self._layers.values():
            yield from layer.items()

    def clear(self) -> None:
        self._layers.clear()
        self._sealed.clear()
