"""The lattice operators and mean-field inference in plain PyTorch, for float64 on the CPU.

PyTorch has no such operators. These functions share no code with the kernels. They use scatter,
gather and sort, and follow the definitions in csrc/permutohedral_filter/README.md and
csrc/mean_field/README.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Simplex = tuple[Tensor, Tensor, Tensor]


def elevated(features: Tensor) -> Tensor:
    """Maps features [N, D, P] to coordinates [N, P, D + 1] whose sum is zero."""
    dims = features.shape[1]
    place = torch.arange(1, dims + 1, dtype=features.dtype)
    factor = math.sqrt(2 / 3) * (dims + 1) / (place * (place + 1)).sqrt()
    scaled = features.movedim(1, -1) * factor
    # Coordinate j is the sum of the scaled features after the j-th, minus j times the j-th.
    behind = scaled.flip(-1).cumsum(-1).flip(-1)
    first = behind[..., :1]
    rest = torch.nn.functional.pad(behind[..., 1:], (0, 1)) - place * scaled
    return torch.cat([first, rest], -1)


def embed(features: Tensor) -> Simplex:
    """Returns base, rank and barycentric weights of the simplex around each point."""
    points = elevated(features)
    width = points.shape[-1]
    with torch.no_grad():
        multiple = (points / width).round()
        residual = points - multiple * width
        # The rank counts the larger residuals and, among equal ones, the earlier.
        larger = residual[..., None, :] > residual[..., None]
        equal = (residual[..., None, :] == residual[..., None]).tril(-1)
        rank = (larger | equal).sum(-1) + multiple.sum(-1, keepdim=True)
        turns = rank.div(width, rounding_mode="floor")
        rank = (rank - turns * width).long()
        base = (multiple - turns) * width
    part = (points - base) / width
    weights = torch.zeros(*points.shape[:-1], width + 1, dtype=points.dtype)
    weights = weights.scatter_add(-1, width - 1 - rank, part)
    weights = weights.scatter_add(-1, width - rank, -part)
    first = weights[..., :1] + 1 + weights[..., -1:]
    return base.int(), rank.to(torch.uint8), torch.cat([first, weights[..., 1:-1]], -1)


def pack(
    base: Tensor, rank: Tensor, words: list[int], strides: list[int], minima: list[int]
) -> Tensor:
    """Returns the keys of all corners, [words, N P (D + 1)] int64, added digit by digit."""
    images, points, width = base.shape
    corner = torch.arange(width)[:, None]
    wraps = rank.long()[..., None, :] > width - 1 - corner
    coordinates = base.long()[..., None, :] + corner - width * wraps.long()
    keys = torch.zeros(words[-1] + 1, images, points, width, dtype=torch.int64)
    keys[0] += strides[0] * torch.arange(images)[:, None, None]
    for i, word in enumerate(words[1:], 1):
        keys[word] += strides[i] * (coordinates[..., i - 1] - minima[i])
    return keys.flatten(1)


def neighbours(keys: Tensor, steps: Tensor) -> Tensor:
    """Returns [D + 1, 2, M]: the indices of the keys one step ahead and one behind, or -1."""
    place = {tuple(key): i for i, key in enumerate(keys.T.tolist())}
    found = []
    for step in steps:
        for sign in (1, -1):
            stepped = (keys + sign * step[:, None]).T.tolist()
            found.append([place.get(tuple(key), -1) for key in stepped])
    return torch.tensor(found).view(len(steps), 2, -1)


def blurred(rows: Tensor, lattice: Sequence[Tensor], transpose: bool) -> Tensor:
    """Returns Blur(Splat(rows)) [M, C]; the blur adds half of both neighbours along each axis."""
    weights, vertices, *_, near = lattice
    count = near.shape[2]
    spread = (weights[..., None] * rows[:, None]).flatten(0, 1)
    values = rows.new_zeros(count, rows.shape[1]).index_add(0, vertices.flatten().long(), spread)
    for axis in reversed(near) if transpose else near:
        padded = torch.nn.functional.pad(values, (0, 0, 0, 1))  # index -1 reads the last row, 0
        values = values + 0.5 * (padded[axis[0].long()] + padded[axis[1].long()])
    return values


def slice_scale(lattice: Sequence[Tensor]) -> float:
    return 1 / (1 + 0.5 ** (lattice[0].shape[1] - 1))


def apply(
    values: Tensor,
    lattice: Sequence[Tensor],
    before: Tensor | None,
    after: Tensor | None,
    transpose: bool,
) -> Tensor:
    """Returns Slice(Blur(Splat(values))), with points scaled before and after."""
    weights, vertices = lattice[:2]
    vertex_values = blurred(values if before is None else values * before, lattice, transpose)
    sliced = (weights[..., None] * vertex_values[vertices.long()]).sum(1) * slice_scale(lattice)
    return sliced if after is None else sliced * after


def symmetric_scale(lattice: Sequence[Tensor]) -> Tensor:
    """Returns [N P, 1]: one divided by the square root of the filtered ones."""
    return apply(torch.ones_like(lattice[0][:, :1]), lattice, None, None, False).rsqrt()


def corner_product(
    rows: Tensor, values: Tensor, lattice: Sequence[Tensor], transpose: bool
) -> Tensor:
    """Returns [N P, D + 1]: products of each point's row with the blurred rows of its vertices."""
    around = blurred(values, lattice, transpose)[lattice[1].long()]
    return (rows[:, None] * around).sum(-1) * slice_scale(lattice)


def mean_field(
    logits: Tensor, terms: Sequence[Sequence[Tensor]], weights: Sequence[float], iterations: int
) -> Tensor:
    """Returns Q [N, L, P] after steps Q <- softmax(log P - sum of weight * mu * K Q).

    A term has nine tensors: six of its lattice, two scales of its filter, and mu [L, L], which is
    empty for Potts' costs.
    """
    images, labels, points = logits.shape
    log_p = logits.movedim(1, -1).reshape(-1, labels).log_softmax(-1)
    q = log_p.exp()
    for _ in range(iterations):
        log_q = log_p
        for (*lattice, before, after, mu), weight in zip(terms, weights, strict=True):
            matrix = 1 - torch.eye(labels).to(q) if mu.numel() == 0 else mu
            log_q = log_q - weight * apply(q, lattice, before, after, False) @ matrix.T
        q = log_q.softmax(-1)
    return q.view(images, points, labels).movedim(-1, 1)
