"""The CUDA kernels of the operators that consume upsampled logits, run on the host."""

from __future__ import annotations

import numpy as np
import pytest

from tests.reference import upsample_bilinear2d, upsample_cross_entropy, upsample_softmax_add

SIZES = [
    ((2, 3), (5, 7)),
    ((5, 7), (2, 3)),
    ((1, 1), (3, 2)),
    ((4, 5), (9, 133)),
    ((2, 1), (20, 140)),
]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("small", "large"), SIZES)
def test_argmax(emulated, small, large, align_corners, channels_last):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 4, *small)).astype(np.float32)
    labels, probability = emulated.upsample_argmax(logits, large, align_corners, channels_last)
    values = upsample_bilinear2d.forward(logits, large, align_corners)
    chosen = np.take_along_axis(values, labels[:, None].astype(np.int64), 1)[:, 0]
    np.testing.assert_allclose(chosen, values.max(1), atol=1e-6)
    exact = 1 / np.exp(values - values.max(1, keepdims=True)).sum(1)
    np.testing.assert_allclose(probability, exact, rtol=1e-5)


@pytest.mark.parametrize("threads", [64, 128])
def test_every_thread_of_a_block_gets_its_sum(emulated, threads):
    values = np.random.default_rng(0).integers(0, 100, size=(2, threads)).astype(np.float64)
    sums = emulated.block_sums(values)
    np.testing.assert_array_equal(sums, np.repeat(values.sum(1, keepdims=True), threads, 1))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize(("small", "large"), SIZES)
def test_cross_entropy(emulated, small, large, reduction, smoothing, channels_last):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 5, *small)).astype(np.float32)
    target = rng.integers(0, 5, size=(2, *large))
    target[0, 0] = 255
    weight = rng.uniform(0.5, 2, size=5).astype(np.float32)
    grad = rng.uniform(size=target.shape if reduction == "none" else ()).astype(np.float32)
    losses, loss, total_weight, gradient = emulated.upsample_cross_entropy(
        logits, target, weight, 255, smoothing, False, grad, reduction == "mean", channels_last
    )
    exact, exact_gradient = upsample_cross_entropy.loss_and_gradient(
        logits, target, weight, 255, reduction, smoothing, grad=grad
    )
    counted = np.where(target == 255, 0, weight[np.where(target == 255, 0, target)])
    np.testing.assert_allclose(total_weight, counted.sum(), rtol=1e-6)
    np.testing.assert_allclose(losses if reduction == "none" else loss, exact, rtol=1e-5, atol=1e-5)
    exact_gradient = exact_gradient if reduction == "none" else grad * exact_gradient
    np.testing.assert_allclose(gradient, exact_gradient, atol=1e-5 * np.abs(exact_gradient).max())


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("small", "large"), SIZES)
def test_softmax_add(emulated, small, large, flip, channels_last):
    logits = np.random.default_rng(0).normal(size=(2, 4, *small)).astype(np.float32)
    result = emulated.upsample_softmax_add(logits, large, 0.25, flip, channels_last)
    exact = 1 + 0.25 * upsample_softmax_add.probabilities(logits, large, flip)
    np.testing.assert_allclose(result, exact, rtol=1e-6)


def test_label_out_of_range_is_nan(emulated):
    logits = np.zeros((1, 3, 2, 2), np.float32)
    target = np.zeros((1, 4, 4), np.int64)
    target[0, 1, 2] = 3
    ones = np.ones(3, np.float32), np.ones((1, 4, 4), np.float32)
    losses, loss, _, gradient = emulated.upsample_cross_entropy(
        logits, target, ones[0], -100, 0.0, False, ones[1], False, False
    )
    assert np.isnan(losses).sum() == 1
    assert np.isnan(loss)
    assert np.isnan(gradient).any()
