"""Lattices whose indices are out of range."""

from __future__ import annotations

from atrousx.ops._permutohedral_lattice import Lattice

INDICES = ("corner_vertices", "starts", "entry_points", "neighbours")
BAD = [-1, 10**6, 2**31 - 1, -(2**31)]


def changed(lattice: Lattice, name: str, place: int, bad: int) -> Lattice:
    """A copy of the lattice with ``bad`` at one place of the named tensor."""
    tensor = getattr(lattice, name).clone()
    tensor.view(-1)[place] = bad
    return lattice._replace(**{name: tensor})
