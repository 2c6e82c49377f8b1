"""Cross-entropy of upsampled logits by its definition, in float64, and its gradient."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tests.reference import upsample_bilinear2d

Array = NDArray[np.float64]
Labels = NDArray[np.int64]


def pixel_terms(
    logits: Array,
    target: Labels,
    weight: Array | None,
    ignore_index: int,
    smoothing: float,
    align_corners: bool,
) -> tuple[Array, Array, Array]:
    """Returns losses and weights [N, OH, OW], and d loss / d upsampled logits [N, C, OH, OW]."""
    size = (target.shape[1], target.shape[2])
    values = upsample_bilinear2d.forward(logits, size, align_corners)
    channels = values.shape[1]
    w = np.ones(channels) if weight is None else weight
    shifted = values - values.max(1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    counts = target != ignore_index
    label = np.where(counts, target, 0)
    hot = (np.arange(channels)[None, :, None, None] == label[:, None]).astype(np.float64)
    shares = w[:, None, None] * ((1 - smoothing) * hot + smoothing / channels)
    losses = -(shares * log_p).sum(1) * counts
    slopes = (shares.sum(1, keepdims=True) * np.exp(log_p) - shares) * counts[:, None]
    return losses, w[label] * counts, slopes


def loss_and_gradient(
    logits: Array,
    target: Labels,
    weight: Array | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    smoothing: float = 0.0,
    align_corners: bool = False,
    grad: Array | None = None,
) -> tuple[Array, Array]:
    """Returns the loss and its gradient. ``grad`` [N, OH, OW] is of the pixels' losses ("none")."""
    losses, weights, slopes = pixel_terms(
        logits, target, weight, ignore_index, smoothing, align_corners
    )
    if reduction == "none":
        value, factor = losses, np.ones_like(losses) if grad is None else grad
    else:
        total = weights.sum() if reduction == "mean" else np.float64(1)
        value = losses.sum() / total
        factor = np.full_like(losses, 1 / total)
    size = (logits.shape[2], logits.shape[3])
    gradient = upsample_bilinear2d.backward(slopes * factor[:, None], size, align_corners)
    return np.asarray(value), gradient
