"""The table of this process's choices, which also decides new sizes by the nearest measured one."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from .geometry import Geometry

# This many sizes of a layer are measured; then the nearest of them decides for all other sizes.
FEW = 4
# This many decisions by the nearest size are kept for a layer. Further sizes are decided again at
# each call. The decision does not change, because the measured sizes stay the same.
MOST_NEAREST = 1024


class Choice(NamedTuple):
    """Which implementation computes a geometry, and the measurements that decided it."""

    native: bool  # true: atrousx's kernels; false: PyTorch's convolution
    agrees: bool  # atrousx's result was compared and is right
    native_seconds: float = math.nan
    torch_seconds: float = math.nan
    error: float = math.nan  # the root mean square of the difference, relative to the result's
    source: str = "measured"  # or "cached", "loaded", "nearest"; "no memory": not compared
    verified: bool = True  # false: another build made the choice, this build compares again

    @property
    def counts(self) -> bool:
        """Whether the choice was compared at its own size, so that it may decide for others."""
        return self.verified and self.source not in ("nearest", "no memory")

    def numbers(self) -> list[Any]:
        """Returns the numbers that are stored in files and checkpoints."""
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
    """Choices by layer and geometry. It is not thread-safe: its users hold a lock."""

    def __init__(self) -> None:
        self._layers: dict[Geometry, dict[Geometry, Choice]] = defaultdict(dict)
        # Layers that a checkpoint or another rank has decided: the cache file adds nothing to them.
        self._sealed: set[Geometry] = set()

    def find(self, geometry: Geometry) -> Choice | None:
        """Returns the choice of a geometry or, if enough sizes are known, of the nearest one."""
        known = self._layers.get(geometry.layer)
        if known is None:
            return None
        found = known.get(geometry)
        return self._nearest(geometry, known) if found is None else found

    def decide(self, geometry: Geometry) -> Choice | None:
        """Returns the same as :meth:`find`, and keeps a choice that the nearest size decided.

        A call that uses the choice calls this method.
        """
        found = self.find(geometry)
        if found is not None and found.source == "nearest":
            known = self._layers[geometry.layer]
            if sum(choice.source == "nearest" for choice in known.values()) < MOST_NEAREST:
                known.setdefault(geometry, found)
        return found

    @staticmethod
    def _nearest(geometry: Geometry, known: dict[Geometry, Choice]) -> Choice | None:
        """Returns the choice of the nearest size, by the logarithm of the batch's pixels.

        If a kernel was wrong at one size, PyTorch computes all sizes that were not compared.
        """
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
        """Adds a choice unless there is one: a choice stays the same for the whole run."""
        if geometry.layer not in self._sealed:
            self._layers[geometry.layer].setdefault(geometry, choice)

    def replace(self, choices: Iterable[tuple[Geometry, Choice]]) -> None:
        """Replaces all choices of the layers that these choices belong to, and seals these layers.

        A choice that stayed could be the nearest one of a new size. It could then decide otherwise
        than in the process that made these choices.
        """
        layers: dict[Geometry, dict[Geometry, Choice]] = defaultdict(dict)
        for geometry, choice in choices:
            layers[geometry.layer][geometry] = choice
        self._layers.update(layers)
        self._sealed.update(layers)

    def seal(self) -> None:
        """Seals all present layers, so that the cache file adds nothing to them."""
        self._sealed.update(self._layers)

    def __iter__(self) -> Iterator[tuple[Geometry, Choice]]:
        for layer in self._layers.values():
            yield from layer.items()

    def clear(self) -> None:
        self._layers.clear()
        self._sealed.clear()
