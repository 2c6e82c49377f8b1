"""The interface of pydensecrf.densecrf: DenseCRF, DenseCRF2D and constants, NumPy on the CPU.

Conventions are those of pydensecrf. Energies are costs, and points are ordered row by row. A
compatibility that is a number is the cost of unequal labels (Potts). A vector or a matrix holds the
cost of each label or pair of labels without change of sign. Results agree with pydensecrf up to
float32 rounding, and are bit-identical from run to run.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ...ops._check import LARGEST_STEP
from ...ops._mean_field import Term, less_message, mean_field
from ...ops._permutohedral_lattice import build_lattice, drop_points
from ...ops.permutohedral_filter import Normalization, normalizer

Array = NDArray[np.float32]


class KernelType(IntEnum):
    """The parameters of a kernel that pydensecrf can learn. Inference is the same for all."""

    CONST_KERNEL = 0
    DIAG_KERNEL = 1
    FULL_KERNEL = 2


class NormalizationType(IntEnum):
    """When a filter divides by its response to a constant: never, before or after it, or both."""

    NO_NORMALIZATION = 0
    NORMALIZE_BEFORE = 1
    NORMALIZE_AFTER = 2
    NORMALIZE_SYMMETRIC = 3


CONST_KERNEL, DIAG_KERNEL, FULL_KERNEL = KernelType
NO_NORMALIZATION, NORMALIZE_BEFORE, NORMALIZE_AFTER, NORMALIZE_SYMMETRIC = NormalizationType
_NORMALIZATION_NAMES: tuple[Normalization, ...] = ("none", "before", "after", "symmetric")


class DenseCRF:
    r"""A fully connected CRF over any points, with pydensecrf's interface.

    .. math::
        E(x) = \sum_i u_{x_i, i} + \sum_{i<j} \sum_k \mu_k(x_i, x_j)\, k_k(f_i, f_j)

    with Gaussian kernels of unit variance in the features f. Inference starts from softmax(-u).
    Each mean-field iteration sets
    :math:`Q \leftarrow \mathrm{softmax}(-u - \sum_k \mu_k (K_k Q))`.

    Args:
        nvar: number of points, N.
        nlabels: number of labels, L.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an array has the wrong shape, dtype or layout, or a number is out of range.

    Source:
        Kraehenbuehl and Koltun: Efficient Inference in Fully Connected CRFs with Gaussian Edge
        Potentials (2011). Names and conventions are those of pydensecrf.

    Example:
        >>> import numpy as np
        >>> from atrousx.compat.pydensecrf import densecrf as dcrf
        >>> d = dcrf.DenseCRF(3, 2)
        >>> d.setUnaryEnergy(np.array([[0, 1, 9], [2, 0.5, 1]], np.float32))
        >>> d.addPairwiseEnergy(np.array([[0, 0.1, 9]], np.float32), compat=2)
        >>> np.argmax(d.inference(5), axis=0)
        array([0, 0, 1])
    """

    def __init__(self, nvar: int, nlabels: int) -> None:
        self._nvar, self._nlabel = _count("nvar", nvar), _count("nlabels", nlabels)
        self._logits: Array = np.zeros((self._nlabel, self._nvar), np.float32)
        self._terms: list[Term] = []

    def setUnaryEnergy(self, u: Array, f: Array | None = None) -> None:
        """Sets the cost of each label at each point: the negative logarithm of its probability.

        Args:
            u: costs ``[L, N]``, float32, C-contiguous; with ``f``, weights ``[L, F]``.
            f: features ``[F, N]``, float32, C-contiguous. The costs are then ``u @ f``.
        """
        _check_array("u", u, 2)
        if f is not None:
            _check_array("f", f, 2)
            if u.shape[1] != f.shape[0]:
                raise ValueError(f"Bad shape for logistic features: u {u.shape}, f {f.shape}")
            u = u @ f
        if u.shape != self._logits.shape:
            raise ValueError(
                f"Bad shape for unary energy (Need {self._logits.shape}, got {u.shape})"
            )
        if np.isnan(u).any():
            raise ValueError("the unary energy must not be NaN")
        self._logits = -u

    def addPairwiseEnergy(
        self,
        features: Array,
        compat: ArrayLike,
        kernel: int = DIAG_KERNEL,
        normalization: int = NORMALIZE_SYMMETRIC,
    ) -> None:
        """Adds a Gaussian kernel.

        Args:
            features: ``[D, N]`` float32, C-contiguous. Each feature is already divided by its
                sigma.
            compat: a number, the cost of unequal labels; or a vector ``[L]``, whose product with a
                label's filtered probability is added to the energy of this label; or a matrix
                ``[L, L]``, which is made symmetric.
            kernel: CONST_KERNEL, DIAG_KERNEL or FULL_KERNEL. Inference is the same for all.
            normalization: NO_NORMALIZATION, NORMALIZE_BEFORE, NORMALIZE_AFTER or
                NORMALIZE_SYMMETRIC.
        """
        _check_array("features", features, 2)
        if features.shape[1] != self._nvar:
            raise ValueError(
                f"Bad shape for pairwise energy (Need (?, {self._nvar}), got {features.shape})"
            )
        KernelType(kernel)
        name = _NORMALIZATION_NAMES[NormalizationType(normalization)]
        weight, matrix = _compatibility(compat, self._nlabel)
        # pydensecrf works on groups of four points. It fills the last group with points at the
        # origin. These have no values, but values are blurred through their vertices.
        padded = np.pad(features, ((0, 0), (0, -self._nvar % 4)))
        lattice = drop_points(build_lattice(torch.from_numpy(padded)[None]), self._nvar)
        self._terms.append(Term(lattice, normalizer(lattice, name), weight, matrix))

    def inference(self, niter: int) -> Array:
        """Returns Q ``[L, N]`` float32: the labels' probabilities after ``niter`` iterations."""
        if not isinstance(niter, Integral):
            raise TypeError(f"niter must be an int, got {type(niter).__name__}")
        if niter > LARGEST_STEP:
            raise ValueError(f"niter must be at most {LARGEST_STEP}, got {niter}")
        logits = torch.from_numpy(self._logits)[None]
        result: Array = mean_field(logits, self._terms, max(0, int(niter)))[0].numpy()
        return result

    def startInference(self) -> tuple[Array, Array, Array]:
        """Returns Q ``[L, N]`` before the first iteration, and two arrays for ``stepInference``."""
        return self.inference(0), np.empty((0, 0), np.float32), np.empty((0, 0), np.float32)

    def stepInference(self, Q: Array, tmp1: Array | None = None, tmp2: Array | None = None) -> None:
        """Does one iteration and changes Q in place. ``tmp1`` and ``tmp2`` are not used."""
        self._check_q(Q)
        log_q = torch.from_numpy(self._logits.T)
        rows = torch.from_numpy(np.ascontiguousarray(Q.T))
        for term in self._terms:
            log_q = less_message(log_q, rows, term)
        Q[...] = log_q.softmax(-1).T.numpy()

    def klDivergence(self, Q: Array) -> float:
        r"""Returns the KL divergence of Q from the CRF's distribution, up to a constant.

        .. math:: \sum_{i, l} Q_{li} \Big(\log Q_{li} + u_{li} + \sum_k (\mu_k K_k Q)_{li}\Big)
        """
        self._check_q(Q)
        rows = torch.from_numpy(np.ascontiguousarray(Q.T))
        log_ratio = torch.from_numpy(self._logits.T) - rows.clamp_min(1e-20).log()
        for term in self._terms:
            log_ratio = less_message(log_ratio, rows, term)
        return -float((rows.double() * log_ratio).sum())

    def _check_q(self, q: Array) -> None:
        if not isinstance(q, np.ndarray) or q.dtype != np.float32 or q.shape != self._logits.shape:
            got = f"{q.dtype} {q.shape}" if isinstance(q, np.ndarray) else type(q).__name__
            raise ValueError(f"Q must be a float32 array {self._logits.shape}, got {got}")


class DenseCRF2D(DenseCRF):
    """A fully connected CRF over the pixels of an image, with pydensecrf's interface.

    Args:
        w: width in pixels. As in pydensecrf the width comes first.
        h: height in pixels.
        nlabels: number of labels, L.

    Arrays over points have N = w h points, row by row. Errors, energy and other methods are those
    of ``DenseCRF``.

    Example:
        >>> import numpy as np
        >>> from atrousx.compat.pydensecrf import densecrf as dcrf
        >>> image = np.zeros((4, 6, 3), np.uint8)
        >>> image[:, 3:] = 200
        >>> d = dcrf.DenseCRF2D(6, 4, 2)
        >>> labels = np.tile([0, 0, 1, 1, 1, 1], 4)
        >>> d.setUnaryEnergy(np.where(labels == [[0], [1]], 0.4, 1.1).astype(np.float32))
        >>> d.addPairwiseGaussian(sxy=1, compat=1)
        >>> d.addPairwiseBilateral(sxy=20, srgb=5, rgbim=image, compat=9)
        >>> np.argmax(d.inference(5), axis=0).reshape(4, 6)[0]
        array([0, 0, 0, 1, 1, 1])
    """

    def __init__(self, w: int, h: int, nlabels: int) -> None:
        self._w, self._h = _count("w", w), _count("h", h)
        super().__init__(self._w * self._h, nlabels)

    def addPairwiseGaussian(
        self,
        sxy: float | Sequence[float],
        compat: ArrayLike,
        kernel: int = DIAG_KERNEL,
        normalization: int = NORMALIZE_SYMMETRIC,
    ) -> None:
        """Adds a Gaussian kernel over the position.

        Args:
            sxy: in pixels, one number or (x, y).
            compat: as in ``addPairwiseEnergy``, and so are ``kernel`` and ``normalization``.
        """
        self.addPairwiseEnergy(self._positions(sxy), compat, kernel, normalization)

    def addPairwiseBilateral(
        self,
        sxy: float | Sequence[float],
        srgb: float | Sequence[float],
        rgbim: NDArray[np.uint8],
        compat: ArrayLike,
        kernel: int = DIAG_KERNEL,
        normalization: int = NORMALIZE_SYMMETRIC,
    ) -> None:
        """Adds a Gaussian kernel over position and colour.

        Args:
            sxy: in pixels, one number or (x, y).
            srgb: in units of the image, one number or (r, g, b).
            rgbim: ``[h, w, 3]`` uint8, C-contiguous.
            compat: as in ``addPairwiseEnergy``, and so are ``kernel`` and ``normalization``.
        """
        _check_array("rgbim", rgbim, 3, np.uint8)
        if rgbim.shape != (self._h, self._w, 3):
            raise ValueError(
                f"Bad shape for pairwise bilateral (Need {(self._h, self._w, 3)}, "
                f"got {rgbim.shape})"
            )
        colours = rgbim.reshape(-1, 3).T / _sigmas("srgb", srgb, 3)
        features = np.concatenate([self._positions(sxy), colours])
        self.addPairwiseEnergy(features, compat, kernel, normalization)

    def _positions(self, sxy: float | Sequence[float]) -> Array:
        """Returns x and y divided by their sigmas, [2, N]."""
        y, x = np.divmod(np.arange(self._nvar), self._w)
        return np.stack([x, y]).astype(np.float32) / _sigmas("sxy", sxy, 2)


def _count(name: str, value: Any) -> int:
    if not isinstance(value, Integral):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return int(value)


def _check_array(name: str, value: Any, rank: int, dtype: type = np.float32) -> None:
    """Raises unless ``value`` suits pydensecrf's typed buffers, with messages like pydensecrf's."""
    if not isinstance(value, np.ndarray):
        raise TypeError(f"Argument {name!r} must be a NumPy array, got {type(value).__name__}")
    if value.ndim != rank:
        raise ValueError(
            f"Buffer has wrong number of dimensions (expected {rank}, got {value.ndim}): {name}"
        )
    if value.dtype != dtype:
        raise ValueError(
            f"Buffer dtype mismatch, expected {np.dtype(dtype)} but got {value.dtype}: {name}"
        )
    if not value.flags.c_contiguous:
        raise ValueError(f"ndarray is not C-contiguous: {name}; np.ascontiguousarray makes it so")


def _sigmas(name: str, value: float | Sequence[float], count: int) -> Array:
    """Returns the sigmas as an array [count, 1]."""
    sigmas = np.asarray(value, np.float32)
    if sigmas.shape not in ((), (count,)) or not np.all((sigmas > 0) & np.isfinite(sigmas)):
        raise ValueError(f"{name} must be one or {count} positive numbers, got {value!r}")
    return np.broadcast_to(sigmas, (count,))[:, None]


def _compatibility(value: ArrayLike, labels: int) -> tuple[float, torch.Tensor | None]:
    """Returns the weight and the matrix of a compatibility; the Potts matrix is None."""
    if isinstance(value, Real):
        return float(value), None
    given = np.asarray(value, np.float32)
    if given.ndim > 2:
        raise ValueError("LabelCompatibility of dimension >2 not meaningful.")
    if any(size != labels for size in given.shape):
        raise ValueError(f"compat must have {labels} labels, got shape {given.shape}")
    if given.ndim == 0:
        return float(given), None
    matrix = np.diag(given) if given.ndim == 1 else (given + given.T) / 2
    return 1.0, torch.from_numpy(matrix)
