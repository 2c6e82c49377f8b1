"""Cases of the permutohedral lattice: its construction, and filtering on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ...ops._permutohedral_lattice import (
    _key_layout,
    _neighbour_steps,
    _order,
    assemble_by_sorting,
)
from ...ops.permutohedral_filter import permutohedral_filter
from .. import twins
from ..devices import Device
from .case import PLAIN, ROWS, WIDE, Case, Tensors, gradients_of

_ops = torch.ops.atrousx


class Cloud(NamedTuple):
    """Points of several images in feature space, with values to filter."""

    images: int
    dims: int
    points: int
    channels: int
    spread: float = 3.0  # standard deviation of the features, in units of the Gaussian's

    def make(self) -> Tensors:
        """Returns features, values, rows, both scales, gradient of the embedding's weights."""
        features = self.spread * torch.randn(self.images, self.dims, self.points).double()
        count = self.images * self.points
        values, rows = (torch.randn(count, self.channels).double() for _ in range(2))
        scales = [torch.rand(count, 1).double() + 0.5 for _ in range(2)]
        grad = torch.randn(self.images, self.points, self.dims + 1).double()
        return features, values, rows, *scales, grad


QUICK = {
    "5 features": Cloud(2, 5, 40, 5),
    "2 features, few vertices": Cloud(1, 2, 61, 21, 0.7),
}
FULL = {
    "5 features, 1,200 points": Cloud(2, 5, 1200, 21, 2.0),
    "7 features, keys of two words": Cloud(1, 7, 150, 3, 2e4),
    "one feature, one channel": Cloud(1, 1, 301, 1, 9.0),
}


def cases(device: Device, quick: bool) -> Iterator[Case]:
    for name, cloud in (QUICK if quick else {**QUICK, **FULL}).items():
        yield from _embedding(name, cloud)
        yield from _building(name, cloud)
        yield from _filtering(name, cloud)
        yield from _function(name, cloud)


def _coordinates(c: Cloud) -> int:
    """Returns how many roundings a corner's weight may have, as the ``length`` of a case.

    A weight is a difference of coordinates, so it loses more bits if the coordinates are large.
    """
    return int(16 * (c.dims + 1) * max(1, c.spread))


def _embedding_gradient(t: Tensors) -> Tensors:
    return gradients_of(lambda leaves: (twins.embed(leaves[0])[2],), t, t[5], (0,))


def _embedding(name: str, c: Cloud) -> Iterator[Case]:
    def embed(t: Tensors, tf32: bool) -> Tensors:
        found: Tensors = _ops._permutohedral_embed(t[0])
        return found

    def embed_backward(t: Tensors, tf32: bool) -> Tensors:
        _, rank, _ = _ops._permutohedral_embed(t[0])
        return (_ops._permutohedral_embed_backward(t[5], rank),)

    def pack(t: Tensors, tf32: bool) -> Tensors:
        base, rank, _ = _ops._permutohedral_embed(t[0])
        return (_ops._permutohedral_pack(base, rank, *_key_layout(base, c.images)),)

    def torch_pack(t: Tensors) -> Tensors:
        base, rank, _ = twins.embed(t[0])
        return (twins.pack(base, rank, *_key_layout(base, c.images)),)

    def near(t: Tensors, tf32: bool) -> Tensors:
        keys, steps = _sorted_keys(t[0].cpu())
        return (_ops._permutohedral_neighbours(keys.to(t[0].device), steps.to(t[0].device)),)

    def torch_near(t: Tensors) -> Tensors:
        return (twins.neighbours(*_sorted_keys(t[0])),)

    for operator, run, twin in (
        ("_permutohedral_embed", embed, lambda t: twins.embed(t[0])),
        ("_permutohedral_embed_backward", embed_backward, _embedding_gradient),
        ("_permutohedral_pack", pack, torch_pack),
        ("_permutohedral_neighbours", near, torch_near),
    ):
        yield Case(
            operator, "forward", name, c.make, run, twin, _coordinates(c), WIDE, ROWS, judged=False
        )


def _building(name: str, c: Cloud) -> Iterator[Case]:
    def built(t: Tensors, tf32: bool) -> Tensors:
        return in_order_of_corners(_ops._permutohedral_build(t[0]))

    def assembled(t: Tensors, tf32: bool) -> Tensors:
        return in_order_of_corners(_ops._permutohedral_assemble(t[0]))

    def by_sorting(t: Tensors) -> Tensors:
        return in_order_of_corners(assemble_by_sorting(t[0]))

    def gradients(t: Tensors, tf32: bool) -> Tensors:
        grad = t[5].flatten(0, 1)
        return gradients_of(lambda leaves: _ops._permutohedral_build(leaves[0]), t, grad, (0,))

    for operator, pass_name, run, twin in (
        ("_permutohedral_assemble", "forward", assembled, by_sorting),
        ("_permutohedral_build", "forward", built, by_sorting),
        ("_permutohedral_build", "gradients", gradients, _embedding_gradient),
    ):
        yield Case(
            operator, pass_name, name, c.make, run, twin, _coordinates(c), WIDE, ROWS, judged=False
        )


def _sorted_keys(features: Tensor) -> tuple[Tensor, Tensor]:
    base, rank, _ = twins.embed(features.double())
    words, strides, minima = _key_layout(base, len(base))
    keys = twins.pack(base, rank, words, strides, minima)
    keys = keys[:, _order(keys, len(base))]
    return keys.unique_consecutive(dim=1), _neighbour_steps(features.shape[1], words, strides)


def in_order_of_corners(lattice: Sequence[Tensor]) -> Tensors:
    """Returns a lattice on the CPU, with its vertices numbered in the order of their first corners.

    A builder may number vertices in any order; everything else is defined.
    """
    weights, vertices, starts, points, entry_weights, near = (t.cpu() for t in lattice)
    corners, count = vertices.flatten().long(), near.shape[2]
    first = torch.full((count,), len(corners))
    first = first.scatter_reduce(0, corners, torch.arange(len(corners)), "amin")
    number = first.argsort().argsort()
    owner = torch.repeat_interleave(number, starts.diff().long())
    order = owner.argsort(stable=True)
    moved = near[:, :, first.argsort()].long()
    moved = torch.where(moved < 0, -1, number[moved.clamp_min(0)])
    corners = number[corners].view(vertices.shape)
    return weights, corners, owner[order], points[order].long(), entry_weights[order], moved


def _rows_and_lattice(c: Cloud) -> Tensors:
    """Returns values, rows, both scales, and the tensors of a lattice."""
    features, values, rows, before, after, _ = c.make()
    return values, rows, before, after, *_ops._permutohedral_build(features)


def _filtering(name: str, c: Cloud) -> Iterator[Case]:
    def applied(t: Tensors, tf32: bool) -> Tensors:
        values, _, before, after, *lattice = t
        return (
            _ops._permutohedral_apply(values, *lattice, before, after, False),
            _ops._permutohedral_apply(values, *lattice, None, None, True),
        )

    def torch_applied(t: Tensors) -> Tensors:
        values, _, before, after, *lattice = t
        return (
            twins.apply(values, lattice, before, after, False),
            twins.apply(values, lattice, None, None, True),
        )

    def product(t: Tensors, tf32: bool) -> Tensors:
        values, rows, _, _, *lattice = t
        found = [_ops._permutohedral_corner_product(rows, values, *lattice, b) for b in (0, 1)]
        return tuple(found)

    def torch_product(t: Tensors) -> Tensors:
        values, rows, _, _, *lattice = t
        return tuple(twins.corner_product(rows, values, lattice, bool(b)) for b in (0, 1))

    length = c.points * (c.dims + 1)
    make = partial(_rows_and_lattice, c)
    for operator, run, twin in (
        ("_permutohedral_apply", applied, torch_applied),
        ("_permutohedral_corner_product", product, torch_product),
    ):
        yield Case(operator, "forward", name, make, run, twin, length, WIDE, ROWS, judged=False)
    yield _gradients_of_filtering(name, c, length)


def _gradients_of_filtering(name: str, c: Cloud, length: int) -> Case:
    def gradients(t: Tensors, tf32: bool) -> Tensors:
        def filtered(leaves: Tensors) -> Tensors:
            values, _, before, after, *lattice = leaves
            return (_ops._permutohedral_apply(values, *lattice, before, after, False),)

        return gradients_of(filtered, t, t[1], (0, 4))

    def torch_gradients(t: Tensors) -> Tensors:
        def filtered(leaves: Tensors) -> Tensors:
            values, _, before, after, *lattice = leaves
            return (twins.apply(values, lattice, before, after, False),)

        return gradients_of(filtered, t, t[1], (0, 4))

    return Case(
        "_permutohedral_apply",
        "gradients",
        name,
        partial(_rows_and_lattice, c),
        gradients,
        torch_gradients,
        length,
        WIDE,
        ROWS,
        judged=False,
    )


def _function(name: str, c: Cloud) -> Iterator[Case]:
    """Yields cases of the public function, which also accepts half types."""

    def make() -> Tensors:
        features = c.spread * torch.randn(c.images, c.dims, c.points).double()
        values, grad = (torch.randn(c.images, c.channels, c.points).double() for _ in range(2))
        return values, features, grad

    def wide(t: Tensors) -> Tensor:
        return t[1].to(torch.promote_types(t[1].dtype, torch.float32))

    def forward(t: Tensors, tf32: bool) -> Tensors:
        return (permutohedral_filter(t[0], wide(t)),)

    def twin(t: Tensors) -> Tensors:
        lattice = assemble_by_sorting(t[1])
        scale = twins.symmetric_scale(lattice)
        rows = t[0].movedim(1, 2).reshape(-1, c.channels)
        filtered = twins.apply(rows, lattice, scale, scale, False)
        return (filtered.view(c.images, c.points, c.channels).movedim(2, 1),)

    def gradients(t: Tensors, tf32: bool) -> Tensors:
        return gradients_of(lambda leaves: forward(leaves, tf32), t, t[2], (0,))

    def torch_gradients(t: Tensors) -> Tensors:
        return gradients_of(twin, t, t[2], (0,))

    length = c.points * (c.dims + 1)
    for pass_name, run, by_torch in (
        ("forward", forward, twin),
        ("gradients", gradients, torch_gradients),
    ):
        yield Case(
            "permutohedral_filter", pass_name, name, make, run, by_torch, length, PLAIN, ROWS,
            judged=False,
        )  # fmt: skip
