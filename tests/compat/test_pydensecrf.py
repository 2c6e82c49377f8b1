"""compat.pydensecrf: pydensecrf's own results, literal conventions, errors.

CPU only: pydensecrf has no notion of a device; its arguments and results are numpy arrays.
tests/ops tests the operators behind it on every device.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atrousx.compat.pydensecrf import densecrf as dcrf
from atrousx.compat.pydensecrf import utils

DATA = Path(__file__).parents[1] / "goldens" / "pydensecrf"
NORMALIZATIONS = {
    "sym": dcrf.NORMALIZE_SYMMETRIC,
    "after": dcrf.NORMALIZE_AFTER,
    "before": dcrf.NORMALIZE_BEFORE,
    "none": dcrf.NO_NORMALIZATION,
}


def golden_crf(path, by_hand=False):
    """Builds the model of a golden file; `by_hand` uses addPairwiseEnergy and utils' features."""
    golden = np.load(path)
    meta = json.loads(str(golden["meta"]))
    given = np.load(DATA / meta["input"])
    unary, image = given["unary"], given["image"]
    labels, height, width = unary.shape
    d = dcrf.DenseCRF(height * width, labels) if by_hand else dcrf.DenseCRF2D(width, height, labels)
    d.setUnaryEnergy(unary.reshape(labels, -1))
    options = {"kernel": dcrf.DIAG_KERNEL, "normalization": NORMALIZATIONS[meta["normalization"]]}
    for name in ("gaussian", "bilateral"):
        kernel = meta[name]
        if kernel is None:
            continue
        compat, sxy = kernel["compat"], kernel["sxy"]
        if isinstance(compat, list):
            compat = np.array(compat, np.float32)
        if by_hand:
            sdims = np.broadcast_to(sxy, 2)[::-1]
            features = utils.create_pairwise_gaussian(sdims, (height, width))
            if name == "bilateral":
                features = utils.create_pairwise_bilateral(sdims, kernel["srgb"], image, chdim=2)
            features[[0, 1]] = features[[1, 0]]  # DenseCRF2D has the order x, y
            d.addPairwiseEnergy(features, compat, **options)
        elif name == "gaussian":
            d.addPairwiseGaussian(sxy=sxy, compat=compat, **options)
        else:
            d.addPairwiseBilateral(
                sxy=sxy, srgb=kernel["srgb"], rgbim=image, compat=compat, **options
            )
    return d, meta["iters"], golden["Q"].reshape(labels, -1)


def assert_as_golden(q, golden):
    assert q.dtype == np.float32
    assert q.flags.c_contiguous
    np.testing.assert_allclose(q, golden, rtol=0, atol=3e-5)
    assert np.mean(q.argmax(0) == golden.argmax(0)) >= 0.9999


@pytest.mark.parametrize("path", sorted(DATA.glob("Q_*.npz")), ids=lambda p: p.stem)
def test_every_golden(path):
    d, iterations, golden = golden_crf(path)
    assert_as_golden(np.array(d.inference(iterations)), golden)


@pytest.mark.parametrize("name", ["29x37x5_aniso_sym_it10", "7x5x3_v2_none_it10"])
def test_goldens_through_general_features(name):
    d, iterations, golden = golden_crf(DATA / f"Q_s_{name}.npz", by_hand=True)
    assert_as_golden(d.inference(iterations), golden)


def test_goldens_step_by_step():
    d, iterations, golden = golden_crf(DATA / "Q_s_29x37x5_v2_sym_it5.npz")
    q, tmp1, tmp2 = d.startInference()
    divergence = [d.klDivergence(q)]
    for _ in range(iterations):
        d.stepInference(q, tmp1, tmp2)
        divergence.append(d.klDivergence(q))
    assert_as_golden(q, golden)
    assert divergence[-1] < divergence[0]


def test_divergence_by_hand():
    d = dcrf.DenseCRF(1, 2)
    d.setUnaryEnergy(np.array([[1], [2]], np.float32))
    q = np.array([[0.25], [0.75]], np.float32)
    expected = 0.25 * (math.log(0.25) + 1) + 0.75 * (math.log(0.75) + 2)
    assert d.klDivergence(q) == pytest.approx(expected)
    # A single point receives only its own message. With a symmetric normaliser K is 1.
    d.addPairwiseEnergy(np.zeros((1, 1), np.float32), 3)
    expected -= 3 * (0.25**2 + 0.75**2)
    assert d.klDivergence(q) == pytest.approx(expected)


POTTS = 2.0
MATRIX = np.array([[0.0, 1.0, 4.0], [3.0, 1.0, 0.0], [2.0, 0.0, -1.0]])


@pytest.mark.parametrize(
    ("compat", "equal"),
    [
        # A Potts cost is a reward for equal labels. Vectors and matrices are costs.
        (POTTS, np.full(3, -POTTS)),
        (np.float32(POTTS), -POTTS * np.eye(3)),
        (np.full(3, -POTTS), POTTS),
        (MATRIX, (MATRIX + MATRIX.T) / 2),
    ],
)
def test_compatibilities_that_are_the_same(compat, equal):
    results = []
    for given in (compat, equal):
        d, *_ = golden_crf(DATA / "Q_s_7x5x3_gaonly_sym_it10.npz")
        d.addPairwiseGaussian(3, compat=given)
        results.append(d.inference(3))
    np.testing.assert_allclose(*results, rtol=0, atol=1e-6)


def test_no_unary_is_uniform():
    np.testing.assert_allclose(dcrf.DenseCRF2D(3, 2, 4).inference(2), 0.25)


def test_logistic_unary():
    weights, features = np.eye(2, 3, dtype=np.float32), np.ones((3, 5), np.float32)
    d = dcrf.DenseCRF(5, 2)
    d.setUnaryEnergy(weights, features)
    np.testing.assert_allclose(d.inference(0), 0.5)


def test_constants():
    assert [dcrf.CONST_KERNEL, dcrf.DIAG_KERNEL, dcrf.FULL_KERNEL] == [0, 1, 2]
    normalizations = [dcrf.NO_NORMALIZATION, dcrf.NORMALIZE_BEFORE, dcrf.NORMALIZE_AFTER]
    assert [*normalizations, dcrf.NORMALIZE_SYMMETRIC] == [0, 1, 2, 3]


def test_tiny_sigmas_neither_crash_nor_mix_pixels():
    d, *_ = golden_crf(DATA / "Q_s_7x5x3_v2_sym_it0.npz")
    image = np.zeros((7, 5, 3), np.uint8)
    alone = d.inference(0)
    d = dcrf.DenseCRF2D(5, 7, 3)
    d.setUnaryEnergy(-np.log(alone))
    d.addPairwiseBilateral(sxy=1e-4, srgb=1e-4, rgbim=image, compat=2)
    expected = np.exp(np.log(alone) + 2 * alone)
    np.testing.assert_allclose(d.inference(1), expected / expected.sum(0), rtol=1e-4)


def test_deprecated_names_of_utils():
    labels = np.array([[0, 1], [2, 3]])
    with pytest.warns(DeprecationWarning, match="use unary_from_labels"):
        unary = utils.compute_unary(labels, 3)
    assert np.array_equal(unary, utils.unary_from_labels(labels, 3, 0.5))
    probabilities = np.array([[0.25, 0.5], [0.75, 0.5]])
    for believed in (1, 0.5):
        with pytest.warns(DeprecationWarning, match="use unary_from_softmax"):
            unary = utils.softmax_to_unary(probabilities, believed)
        expected = -np.log(believed * probabilities + (1 - believed) / 2)
        np.testing.assert_allclose(unary, expected, rtol=1e-6)


def test_unary_from_labels_without_an_unsure_one():
    unary = utils.unary_from_labels(np.array([0, 2]), 3, 0.8, zero_unsure=False)
    np.testing.assert_allclose(np.exp(-unary), [[0.8, 0.1], [0.1, 0.1], [0.1, 0.8]], rtol=1e-6)


def test_bilateral_features_put_the_channels_last():
    image = np.arange(24.0).reshape(2, 3, 4)
    features = utils.create_pairwise_bilateral((1, 1), (1, 2), image[:, :2], chdim=1)
    assert features.dtype == np.float32
    assert np.array_equal(features[:2], utils.create_pairwise_gaussian((1, 1), (2, 4)))
    assert np.array_equal(features[3], image[:, 1].reshape(-1) / 2)


# These also get arguments of wrong types, which must be rejected.
D2: Any = dcrf.DenseCRF2D(4, 3, 2)
U, RGB = np.zeros((2, 12), np.float32), np.zeros((3, 4, 3), np.uint8)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: D2.setUnaryEnergy(None), TypeError, "'u' must be a NumPy array, got NoneType"),
        (lambda: D2.setUnaryEnergy(U.reshape(2, 3, 4)), ValueError, r"expected 2, got 3\): u"),
        (lambda: D2.setUnaryEnergy(U.astype(float)), ValueError, "expected float32 but got float6"),
        (lambda: D2.setUnaryEnergy(U[:, ::2]), ValueError, "ndarray is not C-contiguous: u"),
        (lambda: D2.setUnaryEnergy(U[:1]), ValueError, r"Need \(2, 12\), got \(1, 12\)"),
        (lambda: D2.setUnaryEnergy(U * np.nan), ValueError, "must not be NaN"),
        (lambda: D2.setUnaryEnergy(U, U), ValueError, "Bad shape for logistic features"),
        (lambda: D2.addPairwiseEnergy(U[:, :4].copy(), 1), ValueError, r"Need \(\?, 12\)"),
        (lambda: D2.addPairwiseEnergy(U + np.inf, 1), ValueError, "features must be finite"),
        (lambda: D2.addPairwiseEnergy(U, 1, normalization=4), ValueError, "4 is not a valid"),
        (lambda: D2.addPairwiseEnergy(U, 1, kernel=-1), ValueError, "-1 is not a valid"),
        (lambda: D2.addPairwiseGaussian(3, np.ones(3)), ValueError, r"compat must have 2 labels"),
        (lambda: D2.addPairwiseGaussian(3, np.ones((2,) * 3)), ValueError, ">2 not meaningful"),
        (lambda: D2.addPairwiseGaussian(0, 1), ValueError, "sxy must be one or 2 positive"),
        (lambda: D2.addPairwiseGaussian((1, 2, 3), 1), ValueError, "sxy must be one or 2"),
        (lambda: D2.addPairwiseBilateral(1, 1, RGB * 1.0, 1), ValueError, "expected uint8 but"),
        (lambda: D2.addPairwiseBilateral(1, 1, RGB[:2], 1), ValueError, r"Need \(3, 4, 3\)"),
        (lambda: D2.inference(2.5), TypeError, "niter must be an int, got float"),
        (lambda: D2.stepInference(U[:1]), ValueError, r"Q must be a float32 array \(2, 12\)"),
        (lambda: D2.klDivergence(None), ValueError, "got NoneType"),
        (lambda: dcrf.DenseCRF(0, 2), ValueError, "nvar must be at least 1, got 0"),
        (lambda: type(D2)(3, 2.0, 2), TypeError, "h must be an int, got float"),
        (lambda: utils.unary_from_labels(U, 2, 1.0), AssertionError, "gt_prob must lie"),
        (lambda: utils.unary_from_labels(np.full(2, 3), 2, 0.5), IndexError, "must lie below 3"),
        (lambda: utils.unary_from_softmax(U, 2), AssertionError, "scale must lie in"),
        (lambda: utils.create_pairwise_gaussian((1,), (2, 3)), ValueError, "one sigma per axis"),
        (lambda: utils.create_pairwise_bilateral((1, 1), (1, 2), RGB, 2), ValueError, "3 numbers"),
    ],
)
def test_rejections(call, error, message):
    with pytest.raises(error, match=message):
        call()
