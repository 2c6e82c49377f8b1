"""The CUDA kernels of the permutohedral lattice, run on the host and put together with NumPy."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from tests.reference import permutohedral as reference


def key_layout(base, images, word_per_digit):
    """Digits wide enough for vertices and their neighbours, in one word or in one each."""
    dims = base.shape[2] - 1
    flat = base.reshape(-1, dims + 1)[:, :dims].astype(np.int64)
    minima = [0, *(flat.min(0) - 2 * dims)]
    extents = [images, *(np.ptp(flat, axis=0) + 4 * dims + 1)]
    if word_per_digit:
        return list(range(dims + 1)), [1] * (dims + 1), minima
    strides = [int(np.prod(extents[i + 1 :], dtype=np.int64)) for i in range(dims + 1)]
    return [0] * (dims + 1), strides, minima


def build(emulated, features, blocks, index, word_per_digit=False):
    """The steps of the operator's own construction, with lexsort and unique for torch's sort."""
    images, dims, points = features.shape
    base, rank, weights = emulated.permutohedral_embed(features, blocks)
    words, strides, minima = key_layout(base, images, word_per_digit)
    keys = emulated.permutohedral_pack(base, rank, words, strides, minima, blocks)
    order = np.lexsort(keys[::-1])
    begins = np.append(True, (np.diff(keys[:, order]) != 0).any(0))
    vertex = np.empty(len(order), index)
    vertex[order] = np.cumsum(begins) - 1
    steps = np.zeros((dims + 1, words[-1] + 1), np.int64)
    for axis in range(dims + 1):
        for i in range(dims):
            steps[axis, words[i + 1]] += strides[i + 1] * (dims if i == axis else -1)
    starts = np.flatnonzero(begins)
    neighbours = emulated.permutohedral_neighbours(keys[:, order[starts]], steps, blocks)
    return SimpleNamespace(
        corner_weights=weights.reshape(images * points, dims + 1),
        corner_vertices=vertex.reshape(images * points, dims + 1),
        starts=np.append(starts, len(order)).astype(index),
        entry_points=(order // (dims + 1)).astype(index),
        entry_weights=weights.ravel()[order],
        neighbours=neighbours.astype(index),
        rank=rank,
    )


def lift(emulated, lattice, values, blocks, scale=None, transpose=False):
    scale = np.empty(0, values.dtype) if scale is None else scale
    grid = emulated.permutohedral_splat(
        values, lattice.starts, lattice.entry_points, lattice.entry_weights, scale, blocks
    )
    for axis in lattice.neighbours[::-1] if transpose else lattice.neighbours:
        grid = emulated.permutohedral_blur(grid, axis, blocks)
    return grid


def apply(emulated, lattice, values, blocks, splat_scale=None, slice_scale=None, **options):
    slice_scale = np.empty(0, values.dtype) if slice_scale is None else slice_scale
    grid = lift(emulated, lattice, values, blocks, splat_scale, **options)
    corners = (lattice.corner_vertices, lattice.corner_weights)
    return emulated.permutohedral_slice(grid, *corners, slice_scale, blocks)


def random_case(dims, dtype=np.float64, points=30, channels=3):
    rng = np.random.default_rng(dims)
    features = (2 * rng.standard_normal((2, dims, points))).astype(dtype)
    values = rng.standard_normal((2 * points, channels)).astype(dtype)
    return features, values


@pytest.mark.parametrize("blocks", [1, 5])
@pytest.mark.parametrize("word_per_digit", [False, True])
@pytest.mark.parametrize("index", [np.int32, np.int64])
@pytest.mark.parametrize(("dims", "dtype"), [(1, "f8"), (2, "f4"), (5, "f4"), (5, "f8"), (6, "f8")])
def test_filter(emulated, dims, dtype, index, word_per_digit, blocks):
    features, values = random_case(dims, dtype)
    exact = [
        reference.Lattice(f.T).filter(v)
        for f, v in zip(features, values.reshape(2, -1, 3), strict=True)
    ]
    lattice = build(emulated, features, blocks, index, word_per_digit)
    result = apply(emulated, lattice, values, blocks)
    tolerance = 1e-12 if dtype == "f8" else 1e-5
    np.testing.assert_allclose(result, np.concatenate(exact), rtol=0, atol=tolerance)


def test_scales_multiply_points_in_and_out(emulated):
    features, values = random_case(3)
    lattice = build(emulated, features, 2, np.int32)
    before, after = np.random.default_rng(0).uniform(1, 2, (2, len(values)))
    plain = apply(emulated, lattice, values * before[:, None], 2) * after[:, None]
    np.testing.assert_allclose(apply(emulated, lattice, values, 2, before, after), plain)


def test_transpose_is_the_adjoint(emulated):
    features, left = random_case(4)
    right = np.random.default_rng(1).standard_normal(left.shape)
    lattice = build(emulated, features, 2, np.int32)
    forward = (apply(emulated, lattice, left, 2) * right).sum()
    backward = (left * apply(emulated, lattice, right, 2, transpose=True)).sum()
    np.testing.assert_allclose(forward, backward)


def test_gradient_of_features_is_the_difference_quotient(emulated):
    features, values = random_case(3, points=6)
    grad = np.random.default_rng(1).standard_normal(values.shape)
    lattice = build(emulated, features, 2, np.int32)
    products = [
        emulated.permutohedral_corner_product(
            a, lift(emulated, lattice, b, 2, transpose=transpose), lattice.corner_vertices, 2
        )
        for a, b, transpose in ((grad, values, False), (values, grad, True))
    ]
    to_weights = (products[0] + products[1]).reshape(lattice.rank.shape)
    result = emulated.permutohedral_embed_backward(to_weights, lattice.rank, 2)
    step = 1e-6
    for place in np.ndindex(features.shape):
        sums = []
        for sign in (1, -1):
            moved = features.copy()
            moved[place] += sign * step
            moved_lattice = build(emulated, moved, 2, np.int32)
            sums.append((apply(emulated, moved_lattice, values, 2) * grad).sum())
        assert result[place] == pytest.approx((sums[0] - sums[1]) / (2 * step), abs=1e-6)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("dims", [1, 5, 32])
def test_simplices_enclose_their_points(emulated, dims, dtype):
    rng = np.random.default_rng(dims)
    # Up to the coordinates that the Python side lets pass.
    scale = np.geomspace(1e-3, 2**29 / (dims + 1) ** 2, 40)
    features = (rng.uniform(-1, 1, (1, dims, 40)) * scale).astype(dtype)
    base, rank, weights = (a[0] for a in emulated.permutohedral_embed(features, 1))
    assert (base % (dims + 1) == 0).all()
    assert (base.sum(1) == 0).all()
    assert (np.sort(rank, axis=1) == np.arange(dims + 1)).all()
    # The barycentric combination of the vertices is the point itself.
    k = np.arange(dims + 1)
    wrapped = rank[:, :, None] > dims - k
    vertices = base[:, :, None] + k - (dims + 1) * wrapped  # [P, D + 1, vertex]
    combined = (vertices * weights[:, None, :]).sum(2)
    elevated = features[0].T.astype(np.float64) @ reference.projection(dims).T
    # In float32 a coordinate below 2^15 is known to 2^-9, and weights are rounded once more.
    tolerance = 1e-5 * np.abs(elevated).max(1) + 1e-5
    assert (np.abs(combined - elevated).max(1) <= tolerance * (dims + 1)).all()
    assert (weights >= -1e-2).all()


def test_garbage_stays_in_bounds(emulated):
    for dtype in ("f4", "f8"):
        bad = np.array([np.nan, np.inf, -np.inf, 1e30, -1e30, 3e9], dtype)
        features = np.stack(np.meshgrid(bad, bad, bad)).reshape(1, 3, -1)
        base, rank, _ = emulated.permutohedral_embed(features, 1)
        assert (np.abs(base.astype(np.int64)) <= 2**30 + 4).all()
        assert (rank <= 3).all()


def test_neighbours_by_hand(emulated):
    # Two-word keys (0, 1), (0, 2), (1, 1), (1, 9) and the step (1, 0).
    keys = np.array([[0, 0, 1, 1], [1, 2, 1, 9]])
    found = emulated.permutohedral_neighbours(keys, np.array([[1, 0]]), 1)
    assert found.tolist() == [[[2, -1, -1, -1], [-1, -1, 0, -1]]]


# Every index out of range that a kernel may meet: the sanitizers see that it is not followed.
OUT_OF_RANGE = [-1, 10**6, 2**31 - 1, -(2**31)]


@pytest.mark.parametrize("bad", OUT_OF_RANGE)
@pytest.mark.parametrize("index", [np.int32, np.int64])
def test_what_a_bad_index_points_to_is_nan(emulated, index, bad):
    features, values = random_case(2)
    lattice = build(emulated, features, 2, index)
    none = np.empty(0)
    entries = (lattice.starts, lattice.entry_points, lattice.entry_weights)

    def changed(array, place):
        copy = array.copy()
        copy.ravel()[place] = bad
        return copy

    # An entry's point: its vertex.
    for scale in (none, np.ones(len(values))):
        points = changed(lattice.entry_points, 5)
        grid = emulated.permutohedral_splat(values, entries[0], points, entries[2], scale, 2)
        vertex = np.searchsorted(lattice.starts, 5, side="right") - 1
        assert np.isnan(grid).all(1).nonzero()[0].tolist() == [vertex]
    # The bounds of a run: the vertices on either side, where it is no run of entries.
    starts = changed(lattice.starts, 2)
    grid = emulated.permutohedral_splat(values, starts, *entries[1:], none, 2)
    assert {1, 2} >= set(np.isnan(grid).all(1).nonzero()[0].tolist()) != set()
    # A corner's vertex: its point's values, its product.
    grid = lift(emulated, lattice, values, 2)
    vertices = changed(lattice.corner_vertices, 4)
    sliced = emulated.permutohedral_slice(grid, vertices, lattice.corner_weights, none, 2)
    assert np.isnan(sliced).all(1).nonzero()[0].tolist() == [1]
    product = emulated.permutohedral_corner_product(values, grid, vertices, 2)
    assert np.argwhere(np.isnan(product)).tolist() == [[1, 1]]
    # A neighbour is there or not.
    axis = changed(lattice.neighbours[0], 3)
    axis[0, 3] = bad
    alone = axis.copy()
    alone[0, 3] = -1
    np.testing.assert_array_equal(
        emulated.permutohedral_blur(grid, axis, 2), emulated.permutohedral_blur(grid, alone, 2)
    )


@pytest.mark.parametrize("bad", [4, 255])
def test_a_bad_rank_is_nan(emulated, bad):
    features, _ = random_case(3)
    _, rank, weights = emulated.permutohedral_embed(features, 2)
    rank[1, 4, 2] = bad
    result = emulated.permutohedral_embed_backward(weights, rank, 2)
    assert {(n, p) for n, _, p in np.argwhere(np.isnan(result)).tolist()} == {(1, 4)}
