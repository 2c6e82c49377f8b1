"""Mean-field inference on CUDA, kernels and order of launches, run on the host."""

from __future__ import annotations

import numpy as np
import pytest

from tests.emulator.test_permutohedral import build
from tests.reference import permutohedral as reference

NONE = np.empty(0)


def term(emulated, features, scale=(NONE, NONE), compatibility=NONE):
    """What the operator takes for a kernel over ``features`` [N, D, P]."""
    index = np.int32 if features.itemsize == 4 else np.int64
    lattice = build(emulated, features, 3, index)
    tensors = (
        lattice.corner_weights,
        lattice.corner_vertices,
        lattice.starts,
        lattice.entry_points,
        lattice.entry_weights,
        lattice.neighbours,
    )
    return [*tensors, *(np.asarray(a, features.dtype) for a in (*scale, compatibility))]


def case(labels, points, dtype, images=2, dims=(2, 5)):
    rng = np.random.default_rng(labels)
    logits = (2 * rng.standard_normal((images, labels, points))).astype(dtype)
    features = [(2 * rng.standard_normal((images, d, points))).astype(dtype) for d in dims]
    return logits, features


def oracle(logits, features, costs, iterations):
    """[N, L, P]; a cost [L, L] each; filters as they are."""
    exact = np.empty(logits.shape)
    for n, rows in enumerate(logits.astype(np.float64)):
        kernels = [(f[n].T, c) for f, c in zip(features, costs, strict=True)]
        exact[n] = reference.mean_field(rows.T, kernels, iterations, "none").T
    return exact


def compare(result, exact, dtype):
    tolerance = {"f4": 2e-5, "f8": 1e-11}[dtype]
    np.testing.assert_allclose(result, exact, rtol=0, atol=tolerance)


# One pack to many: lanes share rows by 1, 8 and 32, the last with several packs a lane.
@pytest.mark.parametrize(
    ("labels", "points", "dtype"), [(1, 5, "f4"), (3, 40, "f8"), (21, 40, "f4"), (150, 3, "f4")]
)
@pytest.mark.parametrize("kind", ["potts", "diagonal", "matrix"])
def test_against_the_oracle(emulated, labels, points, dtype, kind):
    logits, features = case(labels, points, dtype)
    rng = np.random.default_rng(7)
    weights, given = [0.3, 0.2], [NONE, NONE]
    costs = [w * (1 - np.eye(labels)) for w in weights]
    if kind == "diagonal":
        given[0] = rng.standard_normal(labels).astype(dtype)
        costs[0] = weights[0] * np.diag(given[0])
    elif kind == "matrix":
        given = [(rng.standard_normal((labels, labels)) / labels).astype(dtype) for _ in weights]
        costs = [w * g for w, g in zip(weights, given, strict=True)]
    terms = [term(emulated, f, compatibility=g) for f, g in zip(features, given, strict=True)]
    result = emulated.mean_field(logits, terms, weights, 2, 2)
    compare(result, oracle(logits, features, costs, 2), dtype)


def test_points_crowded_on_few_vertices(emulated):
    # Runs of 300 entries and more, which a whole block sums, beside short ones; 70 labels in
    # float64 are more packs than a warp has lanes, so that the block goes over a run twice.
    logits, features = case(70, 500, "f8", images=1, dims=(2,))
    features[0][:] = np.where(np.arange(500) < 330, 0.1, features[0])
    terms = [term(emulated, features[0])]
    assert np.diff(terms[0][2]).max() > 256
    costs = [0.01 * (1 - np.eye(70))]
    result = emulated.mean_field(logits, terms, [0.01], 1, 3)
    compare(result, oracle(logits, features, costs, 1), "f8")


def test_scales_multiply_points_in_and_out(emulated):
    logits, features = case(6, 20, "f8", dims=(8,))  # more corners than are gathered at once
    rng = np.random.default_rng(0)
    before, after = rng.uniform(0.5, 1, (2, logits.shape[0] * logits.shape[2]))
    scaled = term(emulated, features[0], (before, after))
    result = emulated.mean_field(logits, [scaled], [0.4], 1, 2)
    rows = logits.transpose(0, 2, 1)
    q = reference.softmax(rows) * before.reshape(2, -1, 1)
    filtered = reference.filter_images(q.transpose(0, 2, 1), features[0], "none")
    message = filtered.transpose(0, 2, 1) * after.reshape(2, -1, 1)
    exact = reference.softmax(rows + 0.4 * message).transpose(0, 2, 1)
    compare(result, exact, "f8")


def test_an_image_does_not_depend_on_its_batch(emulated):
    logits, features = case(21, 25, "f4", images=3)
    whole = emulated.mean_field(logits, [term(emulated, f) for f in features], [0.3, 0.2], 2, 2)
    last = [term(emulated, f[2:]) for f in features]
    alone = emulated.mean_field(logits[2:], last, [0.3, 0.2], 2, 1)
    np.testing.assert_array_equal(whole[2:], alone)


def test_without_terms_and_with_labels_ruled_out(emulated):
    logits = np.array([[[0.0, 800.0], [1.0, 0.0], [-np.inf, -800.0]]], np.float32)
    exact = reference.softmax(logits.astype(np.float64).transpose(0, 2, 1)).transpose(0, 2, 1)
    compare(emulated.mean_field(logits, [], [], 3, 1), exact, "f4")
    potts = [term(emulated, np.zeros((1, 1, 2), np.float32))]
    result = emulated.mean_field(logits, potts, [1.0], 2, 1)
    assert result[0, 2].tolist() == [0, 0]
    np.testing.assert_allclose(result.sum(1), 1, rtol=1e-6)


def test_nan_is_heard_by_its_own_point(emulated):
    logits, features = case(3, 9, "f4", images=1, dims=(2,))
    logits[0, 1, 4] = np.nan
    result = emulated.mean_field(logits, [term(emulated, features[0])], [0.3], 1, 1)
    assert np.isnan(result[0, :, 4]).all()


CORNER_VERTICES, STARTS, ENTRY_POINTS, NEIGHBOURS = 1, 2, 3, 5


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("bad", [-1, 10**6, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize(("labels", "dtype"), [(3, "f8"), (21, "f4")])
def test_what_a_bad_index_points_to_is_nan(emulated, labels, dtype, bad, scaled):
    logits, features = case(labels, 20, dtype, images=1, dims=(2,))
    scale = (np.ones(20), np.ones(20)) if scaled else (NONE, NONE)
    good = emulated.mean_field(logits, [term(emulated, features[0], scale)], [0.3], 1, 2)
    for which in (CORNER_VERTICES, STARTS, ENTRY_POINTS, NEIGHBOURS):
        tensors = term(emulated, features[0], scale)
        tensors[which].ravel()[4] = bad
        result = emulated.mean_field(logits, [tensors], [0.3], 1, 2)
        if which == NEIGHBOURS:  # it is there or not
            assert np.isfinite(result).all()
        else:
            assert np.isnan(result).any()
        if which == CORNER_VERTICES:  # of point 1 alone
            np.testing.assert_array_equal(np.delete(result, 1, 2), np.delete(good, 1, 2))


def test_a_long_run_that_is_none_is_nan(emulated):
    logits, features = case(3, 500, "f4", images=1, dims=(2,))
    features[0][:] = 0.1
    tensors = term(emulated, features[0])
    assert np.diff(tensors[STARTS]).max() > 256
    tensors[STARTS][-1] = 10**6
    assert np.isnan(emulated.mean_field(logits, [tensors], [0.01], 1, 2)).all()
    tensors = term(emulated, features[0])
    tensors[ENTRY_POINTS][300] = 10**6
    assert np.isnan(emulated.mean_field(logits, [tensors], [0.01], 1, 2)).all()
