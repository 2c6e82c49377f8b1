"""The lattice itself: its arrays, its keys, one that is reused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from atrousx.ops import PermutohedralLattice, _permutohedral_lattice, permutohedral_filter
from atrousx.ops._permutohedral_lattice import Lattice, assemble_by_sorting, build_lattice
from atrousx.ops.permutohedral_filter import NORMALIZATIONS
from tests.ops.common import to_float64
from tests.ops.permutohedral_filter.cases import apply_op, ops, random_case
from tests.reference import permutohedral as reference


@pytest.mark.parametrize("scale", [1e2, 1e4, 1e6])
@pytest.mark.parametrize("dims", [2, 5, 16])
def test_large_features_need_wider_keys(device, dims, scale):
    # Points come in pairs, so that neighbours contribute at any scale.
    values, features = random_case(dims=dims, size=(8,), dtype=torch.float32, device=device)
    features = features * (scale / features.abs().max())
    features[..., 1::2] = features[..., ::2]
    exact = reference.filter_images(to_float64(values), to_float64(features))
    result = permutohedral_filter(values, features)
    # Below 2^15 coordinates are float32 as in pydensecrf. Weights then have an error of up to 2^-9.
    np.testing.assert_allclose(to_float64(result), exact, atol=2e-2 if scale < 1e5 else 1e-5)


def test_lattice_indices_of_64_bits(device):
    values, features = random_case(device=device)
    lattice = build_lattice(features.flatten(2))
    rows = values.flatten(2).movedim(1, 2).flatten(0, 1)
    wide = [t if t.is_floating_point() else t.long() for t in lattice]
    for transpose in (False, True):
        narrow = apply_op(rows, *lattice, None, None, transpose)
        assert torch.equal(apply_op(rows, *wide, None, None, transpose), narrow)


def test_lattice_is_what_it_says(device):
    _, features = random_case(dims=3, device=device)
    lattice = build_lattice(features.flatten(2))
    vertices, points = lattice.neighbours.shape[2], len(lattice.corner_vertices)
    weights = lattice.corner_weights
    assert weights.min() >= 0
    torch.testing.assert_close(weights.sum(1), torch.ones_like(weights[:, 0]))
    splat = torch.zeros(vertices, points, device=device, dtype=weights.dtype)
    splat[lattice.corner_vertices.T.long(), torch.arange(points, device=device)] = weights.T
    for m in range(vertices):
        run = slice(int(lattice.starts[m]), int(lattice.starts[m + 1]))
        at = lattice.entry_points[run].long()
        assert (at.diff() >= 0).all()
        torch.testing.assert_close(splat[m, at], lattice.entry_weights[run])
    for ahead, behind in lattice.neighbours.unbind():
        there = (ahead >= 0).nonzero().flatten()
        assert torch.equal(behind[ahead[there].long()].long(), there)


def in_order_of_first_touch(lattice):
    """Returns the same lattice, with vertices numbered in the order in which corners reach them."""
    corners, vertices = lattice.corner_vertices.flatten().long(), lattice.neighbours.shape[2]
    first = torch.full((vertices,), len(corners))
    order = first.scatter_reduce(0, corners, torch.arange(len(corners)), "amin").argsort()
    number = torch.empty_like(order).scatter_(0, order, torch.arange(vertices))
    counts = lattice.starts.diff()[order].long()
    starts = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    entries = torch.arange(len(corners)) + torch.repeat_interleave(
        lattice.starts[order] - starts[:-1], counts
    )
    neighbours = lattice.neighbours[:, :, order].long()
    return Lattice(
        lattice.corner_weights,
        number[lattice.corner_vertices.long()],
        starts,
        lattice.entry_points[entries],
        lattice.entry_weights[entries],
        torch.where(neighbours < 0, neighbours, number[neighbours.clamp_min(0)]),
    )


# Features on a coarse grid lie on edges of simplices. 5e4 needs keys of several words.
@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0, 5e4])
@pytest.mark.parametrize("dims", [1, 2, 5, 7, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lattice_of_the_cpu_against_the_sorted_oracle(dtype, dims, scale):
    for images, points in ((1, 1), (2, 7), (3, 501)):
        features = scale * torch.randn(images, dims, points, dtype=dtype)
        if scale == 30:
            features = features.round() / 3
        expected = in_order_of_first_touch(Lattice(*assemble_by_sorting(features)))
        for got, wanted in zip(build_lattice(features), expected, strict=True):
            assert torch.equal(got.to(wanted.dtype), wanted)


@pytest.mark.parametrize("capacity", [10**6, 300, 40, 1])
def test_more_corners_than_are_sorted_at_once(device, monkeypatch, capacity):
    """With any limit of PyTorch's sort, even below one image, the lattice is bit-identical."""
    for scale, dims in ((0.0, 3), (1.0, 3), (1e4, 20)):  # one vertex, several, keys of two words
        features = scale * torch.randn(3, dims, 50, device=device)
        features[:, :, ::7] = 0
        expected = assemble_by_sorting(features)
        monkeypatch.setattr(_permutohedral_lattice, "_SORT_CAPACITY", capacity)
        sorted_at_once = []
        monkeypatch.setattr(torch.Tensor, "sort", spy_on_sort(sorted_at_once))
        got = assemble_by_sorting(features)
        monkeypatch.undo()
        assert max(sorted_at_once, default=0) <= capacity
        for a, b in zip(got, expected, strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)


def spy_on_sort(sizes):
    sort = torch.Tensor.sort

    def spy(tensor, *args, **kwargs):
        sizes.append(tensor.numel())
        return sort(tensor, *args, **kwargs)

    return spy


def test_opcheck_of_the_builders(device):
    _, features = random_case(dims=3, device=device)
    features = features.flatten(2)
    torch.library.opcheck(ops._permutohedral_embed.default, (features,))
    base, rank, weights = ops._permutohedral_embed(features)
    torch.library.opcheck(ops._permutohedral_embed_backward.default, (weights, rank))
    layout = ([0, 0, 0, 1], [10**8, 10**4, 1, 1], [0, -400, -400, -400])
    torch.library.opcheck(ops._permutohedral_pack.default, (base, rank, *layout))
    keys = torch.arange(5, device=device)[None]
    steps = torch.tensor([[1], [3]], device=device)
    torch.library.opcheck(ops._permutohedral_neighbours.default, (keys, steps))
    expected = [[[1, 2, 3, 4, -1], [-1, 0, 1, 2, 3]], [[3, 4, -1, -1, -1], [-1, -1, -1, 0, 1]]]
    assert ops._permutohedral_neighbours(keys, steps).tolist() == expected
    lattice = build_lattice(features)
    rows = torch.randn(40, 3, dtype=torch.float64, device=device)
    arguments = (rows, rows, *lattice, False)
    torch.library.opcheck(ops._permutohedral_corner_product.default, arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dims", [1, 5, 32])
def test_simplices_enclose_their_points(device, dims, dtype):
    # Up to the largest coordinates that Python accepts.
    scale = torch.logspace(-3, math.log10(2**29 / (dims + 1) ** 2), 40)
    features = ((2 * torch.rand(1, dims, 40) - 1) * scale).to(device, dtype)
    base, rank, weights = (t[0].cpu().numpy() for t in ops._permutohedral_embed(features))
    assert (base % (dims + 1) == 0).all()
    assert (base.sum(1) == 0).all()
    assert (np.sort(rank, axis=1) == np.arange(dims + 1)).all()
    # The barycentric combination of the vertices is the point.
    k = np.arange(dims + 1)
    wrapped = rank[:, :, None] > dims - k
    vertices = base[:, :, None] + k - (dims + 1) * wrapped  # [P, D + 1, vertex]
    combined = (vertices * weights[:, None, :]).sum(2)
    elevated = to_float64(features)[0].T @ reference.projection(dims).T
    # In float32 a coordinate below 2^15 is accurate to 2^-9, and weights are rounded again.
    tolerance = 1e-5 * np.abs(elevated).max(1) + 1e-5
    assert (np.abs(combined - elevated).max(1) <= tolerance * (dims + 1)).all()
    assert (weights >= -1e-2).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_coordinates_are_held_within_bounds(device, dtype):
    bad = torch.tensor([math.nan, math.inf, -math.inf, 1e30, -1e30, 3e9], dtype=dtype)
    features = torch.stack(torch.meshgrid(bad, bad, bad, indexing="ij")).view(1, 3, -1)
    base, rank, _ = ops._permutohedral_embed(features.to(device))
    assert base.abs().max() <= 2**30 + 4
    assert rank.max() <= 3


def test_neighbours_of_keys_of_two_words_by_hand(device):
    # (0, 1), (0, 2), (1, 1), (1, 9) and the step (1, 0).
    keys = torch.tensor([[0, 0, 1, 1], [1, 2, 1, 9]], device=device)
    found = ops._permutohedral_neighbours(keys, torch.tensor([[1, 0]], device=device))
    assert found.tolist() == [[[2, -1, -1, -1], [-1, -1, 0, -1]]]


def test_scales_multiply_points_in_and_out(device):
    values, features = random_case(dims=3, device=device)
    lattice = build_lattice(features.flatten(2))
    rows = values.flatten(2).movedim(1, 2).flatten(0, 1)
    before, after = (1 + torch.rand_like(rows[:, :1]) for _ in range(2))
    plain = apply_op(rows * before, *lattice, None, None, False) * after
    torch.testing.assert_close(apply_op(rows, *lattice, before, after, False), plain)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_a_lattice_filters_any_values(device, normalization):
    values, features = random_case(device=device)
    lattice = PermutohedralLattice(features, normalization)
    for given in (values, values[:, :1], values.to(memory_format=torch.channels_last)):
        result = lattice.filter(given)
        assert torch.equal(result, permutohedral_filter(given, features, normalization))
        assert result.stride() == permutohedral_filter(given, features, normalization).stride()
    assert lattice.vertices > 0


def test_gradients_go_through_a_lattice(device):
    values, features = random_case(device=device)
    features.requires_grad_()
    lattice = PermutohedralLattice(features)
    result = lattice.filter(values) + lattice.filter(2 * values)
    (gradient,) = torch.autograd.grad(result.square().sum(), features)
    once = 3 * permutohedral_filter(values, features)
    (expected,) = torch.autograd.grad(once.square().sum(), features)
    torch.testing.assert_close(gradient, expected)


def test_a_lattice_of_other_dtypes_and_of_nothing(device):
    values, features = random_case(dtype=torch.float16, device=device)
    result = PermutohedralLattice(features).filter(values.double())
    assert result.dtype == torch.float64
    expected = permutohedral_filter(values.float(), features.float())
    torch.testing.assert_close(result.float(), expected)
    empty = PermutohedralLattice(torch.zeros(0, 3, 5, device=device))
    assert empty.filter(torch.zeros(0, 2, 5, device=device)).shape == (0, 2, 5)
    assert empty.vertices == 0


def test_rejections_of_a_lattice():
    with pytest.raises(ValueError, match="features must have 1 to 32 per point, got shape"):
        PermutohedralLattice(torch.zeros(3))
    with pytest.raises(ValueError, match="normalization must be one of"):
        PermutohedralLattice(torch.zeros(1, 2, 3), "both")
    lattice = PermutohedralLattice(torch.zeros(1, 2, 4, 5))
    with pytest.raises(ValueError, match=r"sizes of the features, \(1, 4, 5\), got .*\(1, 3, 5, 4"):
        lattice.filter(torch.zeros(1, 3, 5, 4))
    with pytest.raises(RuntimeError, match="on the device of the features"):
        lattice.filter(torch.zeros(1, 3, 4, 5, device="meta"))
