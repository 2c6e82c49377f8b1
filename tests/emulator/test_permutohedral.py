"""Invalid lattices on CUDA: values at a bad index are NaN, and the index is not followed.

The CPU raises an error instead: see tests/ops/permutohedral_filter/test_foreign_lattices.py.
"""

from __future__ import annotations

import pytest
import torch

from atrousx.ops._permutohedral_lattice import build_lattice
from tests.emulator.bad_indices import BAD, INDICES, changed
from tests.emulator.device import NAME

pytestmark = pytest.mark.emulated
ops = torch.ops.atrousx
POINTS = 60


def make_lattice(index, points=POINTS):
    lattice = build_lattice(2 * torch.randn(2, 2, points // 2, dtype=torch.float64).to(NAME))
    return lattice._replace(**{name: getattr(lattice, name).to(index) for name in INDICES})


def nan_rows(rows):
    return set(rows.isnan().any(1).nonzero().flatten().tolist())


def readers(lattice, vertices):
    """Returns the points that a value on any of these vertices reaches, including by the blur."""
    values = torch.zeros(POINTS, 1, dtype=torch.float64, device=NAME)
    reached = set()
    for vertex in vertices:
        first, last = lattice.starts[vertex].item(), lattice.starts[vertex + 1].item()
        values[lattice.entry_points[first:last].long()] = 1
    result = ops._permutohedral_apply(values, *lattice, None, None, False)
    reached |= set((result != 0).any(1).nonzero().flatten().tolist())
    return reached


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_what_a_bad_index_points_to_is_nan(emulated_device, index, bad):
    lattice = make_lattice(index)
    rows = torch.randn(POINTS, 3, dtype=torch.float64, device=NAME)
    ones = torch.ones(POINTS, 1, dtype=torch.float64, device=NAME)

    def apply(lattice, scale=None):
        return ops._permutohedral_apply(rows, *lattice, scale, None, False)

    good = apply(lattice)
    # A bad point of an entry affects the entry's vertex, and the vertices that it is blurred into.
    for scale in (None, ones):
        result = apply(changed(lattice, "entry_points", 5, bad), scale)
        vertex = int((lattice.starts <= 5).sum()) - 1
        assert set() != nan_rows(result) <= readers(lattice, [vertex])
    # A bad bound affects the vertices on both sides, where the run is no longer valid.
    result = apply(changed(lattice, "starts", 2, bad))
    assert set() != nan_rows(result) <= readers(lattice, [1, 2])
    # A bad vertex of a corner affects the values of its point, and the corner's product.
    wrong = changed(lattice, "corner_vertices", 4, bad)
    result = apply(wrong)
    assert nan_rows(result) == {1}
    others = torch.arange(POINTS, device=NAME) != 1
    assert torch.equal(result[others], good[others])
    product = ops._permutohedral_corner_product(rows, rows, *wrong, False)
    assert product.isnan().nonzero().tolist() == [[1, 1]]
    # A bad neighbour counts as no neighbour.
    absent = apply(changed(lattice, "neighbours", 3, -1))
    assert torch.equal(apply(changed(lattice, "neighbours", 3, bad)), absent)


@pytest.mark.parametrize("bad", [4, 255])
def test_a_bad_rank_is_nan(emulated_device, bad):
    features = 2 * torch.randn(2, 3, 30, dtype=torch.float64).to(NAME)
    _, rank, weights = ops._permutohedral_embed(features)
    rank[1, 4, 2] = bad
    result = ops._permutohedral_embed_backward(weights, rank)  # [N, D, P]
    assert {(n, p) for n, _, p in result.isnan().nonzero().tolist()} == {(1, 4)}
