"""The interface of pydensecrf.utils: energies of labels and probabilities, features of grids."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def unary_from_labels(
    labels: NDArray[Any], n_labels: int, gt_prob: float, zero_unsure: bool = True
) -> Array:
    r"""Returns the energies of hard labels that are right with a given probability.

    .. math:: u_{li} = -\log p \text{ if } l = y_i, \text{ else } -\log \frac{1 - p}{L - 1}

    Args:
        labels: N integers, of any shape.
        n_labels: number of labels, L, without the label for "unsure".
        gt_prob: p, strictly between 0 and 1.
        zero_unsure: whether 0 means "unsure". Every label then has the probability 1/L at such a
            point, and label l is written as l + 1.

    Returns:
        ``[L, N]`` float32.

    Example:
        >>> import numpy as np
        >>> from atrousx.compat.pydensecrf.utils import unary_from_labels
        >>> unary_from_labels(np.array([[0, 2]]), 2, gt_prob=0.9).round(2)
        array([[0.69, 2.3 ],
               [0.69, 0.11]], dtype=float32)
    """
    if not 0 < gt_prob < 1:
        # pydensecrf raises AssertionError too.
        raise AssertionError(f"gt_prob must lie strictly between 0 and 1, got {gt_prob}")
    flat = np.asarray(labels).reshape(-1)
    own = flat - 1 if zero_unsure else flat
    known = flat != 0 if zero_unsure else np.ones(flat.shape, bool)
    if np.any((own[known] < 0) | (own[known] >= n_labels)):
        raise IndexError(f"labels must lie below {n_labels + zero_unsure}, and not below 0")
    others = (1 - gt_prob) / max(n_labels - 1, 1)
    probability = np.where(own == np.arange(n_labels)[:, None], gt_prob, others)
    energy: Array = -np.log(np.where(known, probability, 1 / n_labels)).astype(np.float32)
    return energy


def compute_unary(labels: NDArray[Any], M: int, GT_PROB: float = 0.5) -> Array:
    """Calls ``unary_from_labels(labels, M, GT_PROB)``; deprecated, as in pydensecrf."""
    warnings.warn(
        "compute_unary is deprecated, use unary_from_labels", DeprecationWarning, stacklevel=2
    )
    return unary_from_labels(labels, M, GT_PROB)


def unary_from_softmax(
    sm: NDArray[Any], scale: float | None = None, clip: float | None = 1e-5
) -> Array:
    r"""Returns the energies of probabilities, :math:`u = -\log \max(s\, P + (1 - s) / L,\ clip)`.

    Args:
        sm: probabilities ``[L, *]``.
        scale: s in (0, 1], the confidence in the probabilities; None means 1.
        clip: the least probability. None keeps zeros, whose energy is infinite.

    Returns:
        ``[L, N]`` float32, C-contiguous.

    Example:
        >>> import numpy as np
        >>> from atrousx.compat.pydensecrf.utils import unary_from_softmax
        >>> unary_from_softmax(np.array([[1.0, 0.5], [0.0, 0.5]])).round(2)
        array([[-0.  ,  0.69],
               [11.51,  0.69]], dtype=float32)
    """
    labels = sm.shape[0]
    if scale is not None:
        if not 0 < scale <= 1:
            raise AssertionError(f"scale must lie in (0, 1], got {scale}")
        sm = scale * sm + (1 - scale) / labels
    if clip is not None:
        sm = np.clip(sm, clip, 1)
    return np.ascontiguousarray(-np.log(sm).reshape(labels, -1), np.float32)


def softmax_to_unary(sm: NDArray[Any], GT_PROB: float = 1) -> Array:
    """Calls ``unary_from_softmax(sm, GT_PROB, clip=None)``; deprecated, as in pydensecrf."""
    warnings.warn(
        "softmax_to_unary is deprecated, use unary_from_softmax", DeprecationWarning, stacklevel=2
    )
    return unary_from_softmax(sm, None if GT_PROB == 1 else GT_PROB, clip=None)


def create_pairwise_gaussian(sdims: Sequence[float], shape: Sequence[int]) -> Array:
    """Returns positions on a grid of any rank, divided by their sigmas, for ``addPairwiseEnergy``.

    Args:
        sdims: sigmas, in the order of the axes (for an image y, then x).
        shape: shape of the grid.

    Returns:
        ``[len(shape), N]`` float32, C-contiguous.

    Example:
        >>> from atrousx.compat.pydensecrf.utils import create_pairwise_gaussian
        >>> create_pairwise_gaussian((1, 2), (2, 3))
        array([[0. , 0. , 0. , 1. , 1. , 1. ],
               [0. , 0.5, 1. , 0. , 0.5, 1. ]], dtype=float32)
    """
    if len(sdims) != len(shape):
        raise ValueError(f"sdims must have one sigma per axis of {tuple(shape)}, got {sdims}")
    positions = np.indices(tuple(shape), np.float32).reshape(len(shape), -1)
    features: Array = positions / np.asarray(sdims, np.float32)[:, None]
    return features


def create_pairwise_bilateral(
    sdims: Sequence[float],
    schan: float | Sequence[float],
    img: NDArray[Any],
    chdim: int = -1,
) -> Array:
    """Returns positions and channels of an image of any rank, divided by their sigmas.

    Args:
        sdims: sigmas of the positions, in the order of the axes (for an image y, then x).
        schan: sigma of the channels: one number for all, or one for each.
        img: the image.
        chdim: the axis of the channels. -1 means that the image has no such axis: one channel.

    Returns:
        ``[axes + channels, N]`` float32, C-contiguous, for ``addPairwiseEnergy``.

    Example:
        >>> import numpy as np
        >>> from atrousx.compat.pydensecrf.utils import create_pairwise_bilateral
        >>> create_pairwise_bilateral((1, 2), 4, np.array([[8, 0], [4, 2]]))
        array([[0. , 0. , 1. , 1. ],
               [0. , 0.5, 0. , 0.5],
               [2. , 0. , 1. , 0.5]], dtype=float32)
    """
    channels = np.asarray(img, np.float32)
    channels = channels[None] if chdim == -1 else np.moveaxis(channels, chdim, 0)
    positions = create_pairwise_gaussian(sdims, channels.shape[1:])
    sigmas = np.asarray(schan, np.float32)
    if not isinstance(schan, Real) and sigmas.shape != channels.shape[:1]:
        raise ValueError(f"schan must be one or {len(channels)} numbers, got {schan!r}")
    flat = channels.reshape(len(channels), -1) / sigmas.reshape(-1, 1)
    return np.concatenate([positions, flat])
