"""The fully connected CRF with mean-field inference, as a module."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from numbers import Integral, Real

import torch
from torch import Tensor, nn

from ..ops._check import (
    LARGEST_STEP,
    check_device,
    check_floating,
    check_rank,
    check_same_device,
    check_tensor,
)
from ..ops._mean_field import Term, mean_field
from ..ops._permutohedral_lattice import build_lattice
from ..ops.permutohedral_filter import (
    Normalization,
    check_normalization,
    computing_dtype,
    normalizer,
)

Sigma = float | Sequence[float]
Compatibility = Tensor | None


class PairwiseKernel(nn.Module):
    """One Gaussian kernel of the energy: its weight, its sigmas and its label compatibility.

    With ``trainable`` the weight, the logarithm of the sigmas and the compatibility are parameters.
    Otherwise they are constants. Constants are not in the ``state_dict``. The weight and the sigmas
    then stay exact when the module is cast to another dtype.
    """

    def __init__(
        self,
        num_labels: int,
        weight: float,
        sigma: Sequence[float],
        compatibility: Compatibility,
        trainable: bool,
    ) -> None:
        super().__init__()
        self.fixed_weight, self.fixed_sigma = float(weight), tuple(sigma)
        self.trainable = trainable
        self.compatibility: Compatibility
        if trainable:
            potts = 1.0 - torch.eye(num_labels)
            self.weight = nn.Parameter(torch.tensor(self.fixed_weight))
            self.log_sigma = nn.Parameter(torch.tensor(self.fixed_sigma).log())
            self.compatibility = nn.Parameter(
                potts if compatibility is None else compatibility.detach().clone()
            )
        else:
            self.register_buffer("compatibility", compatibility, persistent=False)

    def sigma(self, like: Tensor) -> Tensor:
        """Returns the divisors of the features [D], in the dtype and on the device of ``like``."""
        if self.trainable:
            return self.log_sigma.exp().to(like.dtype)
        return torch.tensor(self.fixed_sigma, dtype=like.dtype, device=like.device)

    def term(self, features: Tensor, normalization: Normalization) -> Term:
        """Returns the CRF's term of this kernel for ``features`` [N, D, P], in their dtype."""
        lattice = build_lattice(features / self.sigma(features)[:, None])
        weight: float | Tensor = self.fixed_weight
        compatibility = self.compatibility
        if self.trainable:
            weight = self.weight.to(features.dtype)
        if compatibility is not None:
            compatibility = compatibility.to(features.dtype)
        return Term(lattice, normalizer(lattice, normalization), weight, compatibility)

    def extra_repr(self) -> str:
        return f"weight={self.fixed_weight}, sigma={self.fixed_sigma}"


class DenseCRF(nn.Module):
    r"""Refines a labelling with a fully connected CRF over an image, by mean-field inference.

    .. math::
        E(x) = -\sum_i \log P_i(x_i) + \sum_{i<j} \mu(x_i, x_j) \Big[
        w_1 e^{-\frac{\lVert p_i - p_j \rVert^2}{2\sigma_{xy}^2}
               -\frac{\lVert I_i - I_j \rVert^2}{2\sigma_{rgb}^2}}
        + w_2 e^{-\frac{\lVert p_i - p_j \rVert^2}{2\sigma_{xy}'^2}} \Big]

    with :math:`P = \mathrm{softmax}(logits)`. Inference starts from :math:`Q = P`. Each iteration
    sets :math:`Q \leftarrow \mathrm{softmax}(\log P - \sum_k w_k\, \mu\, (K_k Q))`.
    ``ops.permutohedral_filter`` computes :math:`K_k Q`. The lattices are built once for all
    iterations. Conventions and results match pydensecrf. Results are bit-identical from run to run.

    Args:
        num_labels: number of labels, L.
        bilateral_weight: :math:`w_1`; 0 or None switches the bilateral kernel off.
        bilateral_sigma_xy: in pixels, one number or (x, y).
        bilateral_sigma_rgb: in units of the image, one number or (r, g, b).
        gaussian_weight: :math:`w_2`; 0 or None switches the Gaussian kernel off.
        gaussian_sigma_xy: in pixels, one number or (x, y).
        iterations: number of mean-field iterations; 0 returns P.
        compatibility: :math:`\mu`, ``[L, L]``. The row is the label that pays the penalty, the
            column the label of the other pixel. A pair of matrices gives the bilateral kernel the
            first and the Gaussian kernel the second. None is the Potts model: 1 where the labels
            differ, 0 where they are equal.
        normalization: how the filters are normalised: "symmetric" as in pydensecrf, "after" as by
            the DeepLab authors, "before" or "none".
        trainable: makes parameters of the weights, the compatibilities and the logarithms of the
            sigmas. A compatibility of None starts from the Potts model.
        recompute: for training under ``torch.compile``. The backward pass computes each iteration
            again, so that only Q is kept of each iteration. Without ``torch.compile`` this is
            always so.

    Shape:
        Takes logits ``[N, L, H, W]`` (float32, float64, float16, bfloat16) and an RGB image
        ``[N, 3, H, W]`` in 0..255, uint8 or floating. Returns probabilities ``[N, L, H, W]`` in the
        dtype and memory format of the logits. Half types are computed in float32. Gradients reach
        the logits, the image and the parameters.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape is wrong, a sigma is not positive, or the image is not finite.
        RuntimeError: the logits, the image and the module's tensors are on different devices. The
            module's tensors are its parameters and compatibilities; ``.to()`` moves them.

    Source:
        Kraehenbuehl and Koltun: Efficient Inference in Fully Connected CRFs with Gaussian Edge
        Potentials (2011). The defaults are those of DeepLab v2.

    Example:
        >>> import torch, atrousx
        >>> crf = atrousx.DenseCRF(num_labels=21)
        >>> crf(torch.randn(1, 21, 32, 32), torch.randint(256, (1, 3, 32, 32))).shape
        torch.Size([1, 21, 32, 32])
    """

    _looked_at_range = False

    def __init__(
        self,
        num_labels: int,
        *,
        bilateral_weight: float | None = 4.0,
        bilateral_sigma_xy: Sigma = 67.0,
        bilateral_sigma_rgb: Sigma = 3.0,
        gaussian_weight: float | None = 3.0,
        gaussian_sigma_xy: Sigma = 3.0,
        iterations: int = 10,
        compatibility: Compatibility | Sequence[Compatibility] = None,
        normalization: Normalization = "symmetric",
        trainable: bool = False,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        if not (isinstance(num_labels, (int, Integral)) and num_labels > 0):
            raise ValueError(f"num_labels must be a positive int, got {num_labels!r}")
        if not (isinstance(iterations, (int, Integral)) and 0 <= iterations <= LARGEST_STEP):
            raise ValueError(f"iterations must be an int, 0 to {LARGEST_STEP}, got {iterations!r}")
        check_normalization(normalization)
        bilateral_sigma = (
            *_sigmas("bilateral_sigma_xy", bilateral_sigma_xy, 2),
            *_sigmas("bilateral_sigma_rgb", bilateral_sigma_rgb, 3),
        )
        gaussian_sigma = _sigmas("gaussian_sigma_xy", gaussian_sigma_xy, 2)
        matrices = _compatibilities(compatibility, num_labels)

        def kernel(
            name: str, weight: float | None, sigma: Sequence[float], matrix: Compatibility
        ) -> PairwiseKernel | None:
            if weight is None or _finite(name, weight) == 0:
                return None
            return PairwiseKernel(num_labels, weight, sigma, matrix, trainable)

        self.gaussian = kernel("gaussian_weight", gaussian_weight, gaussian_sigma, matrices[1])
        self.bilateral = kernel("bilateral_weight", bilateral_weight, bilateral_sigma, matrices[0])
        self.num_labels, self.iterations = int(num_labels), int(iterations)
        self.normalization, self.trainable = normalization, trainable
        self.recompute = recompute

    def extra_repr(self) -> str:
        return (
            f"num_labels={self.num_labels}, iterations={self.iterations}, "
            f"normalization={self.normalization!r}, trainable={self.trainable}"
        )

    def forward(self, logits: Tensor, image: Tensor) -> Tensor:
        self._check(logits, image)
        if logits.numel() == 0 or logits.is_meta:
            return logits.clone()
        dtype = computing_dtype(logits, image)
        # Autocast is off: half precision would move the vertices of the lattice.
        with torch.autocast(logits.device.type, enabled=False):
            image = image.to(dtype)
            terms = [
                kernel.term(pixel_features(image, coloured), self.normalization)
                for kernel, coloured in ((self.gaussian, False), (self.bilateral, True))
                if kernel is not None
            ]
            flat = logits.to(dtype).flatten(2)
            q = mean_field(flat, terms, self.iterations, self.recompute)
        result = q.reshape(logits.shape).to(logits.dtype)
        return result.contiguous(memory_format=torch._prims_common.suggest_memory_format(logits))

    def _check(self, logits: Tensor, image: Tensor) -> None:
        check_floating("logits", logits)
        check_device("logits", logits)
        check_rank("logits", logits, 4, "[N, L, H, W]")
        check_tensor("image", image)
        if image.is_complex() or image.dtype == torch.bool:
            raise TypeError(f"image must be of an integer or floating dtype, got {image.dtype}")
        batch, labels, *size = logits.shape
        if labels != self.num_labels:
            raise ValueError(
                f"logits must have num_labels = {self.num_labels} channels, "
                f"got shape {tuple(logits.shape)}"
            )
        if tuple(image.shape) != (batch, 3, *size):
            raise ValueError(
                f"image must have the shape {(batch, 3, *size)} that belongs to logits of shape "
                f"{tuple(logits.shape)}, got {tuple(image.shape)}"
            )
        check_same_device("image", image, "logits", logits)
        for name, tensor in (*self.named_parameters(), *self.named_buffers()):
            check_same_device(f"this DenseCRF's {name}", tensor, "logits", logits)
        # A traced call has no data yet. The lattice checks the values when the call runs.
        no_data = image.is_meta or torch.compiler.is_compiling()
        if image.is_floating_point() and not no_data:
            if not bool(image.isfinite().all()):
                raise ValueError("image must be finite, got NaN or infinity")
            self._check_range(image)

    def _check_range(self, image: Tensor) -> None:
        """Warns once if the image is in 0..1: at these sigmas its colours would hardly differ."""
        # Only on the CPU: reading a number from a GPU would wait for the GPU.
        if self._looked_at_range or not image.is_cpu or image.numel() == 0:
            return
        self._looked_at_range = True
        least, greatest = image.detach().aminmax()
        if least >= 0 and 0 < greatest <= 1:
            warnings.warn(
                "the values of image lie in 0..1; DenseCRF expects 0..255, the range that "
                "bilateral_sigma_rgb is given in: multiply the image by 255",
                UserWarning,
                stacklevel=6,
            )


def pixel_features(image: Tensor, coloured: bool) -> Tensor:
    """Returns the features [N, D, P]: x, y and, if ``coloured``, the colours.

    The lattice depends on this order.
    """
    batch, _, height, width = image.shape
    x = torch.arange(width, dtype=image.dtype, device=image.device).expand(height, width)
    y = torch.arange(height, dtype=image.dtype, device=image.device)[:, None].expand(height, width)
    positions = torch.stack([x, y]).expand(batch, 2, height, width)
    return (torch.cat([positions, image], 1) if coloured else positions).flatten(2)


def _finite(name: str, value: float) -> float:
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float, Real))
        or not math.isfinite(value)
    ):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    return value


def _sigmas(name: str, value: Sigma, count: int) -> tuple[float, ...]:
    values = (value,) * count if isinstance(value, (int, float, Real)) else tuple(value)
    if len(values) != count or not all(_finite(name, v) > 0 for v in values):
        raise ValueError(f"{name} must be one or {count} positive numbers, got {value!r}")
    return tuple(float(v) for v in values)


def _compatibilities(
    value: Compatibility | Sequence[Compatibility], num_labels: int
) -> tuple[Compatibility, Compatibility]:
    if value is None or isinstance(value, Tensor):
        value = (value, value)
    if not isinstance(value, Sequence) or len(value) != 2:
        raise ValueError(
            f"compatibility must be a tensor or a pair of them, got {type(value).__name__}"
        )
    pair = (value[0], value[1])
    for matrix in pair:
        if matrix is None:
            continue
        check_floating("compatibility", matrix)
        if matrix.shape != (num_labels, num_labels) or not bool(matrix.isfinite().all()):
            raise ValueError(
                f"compatibility must be a finite [{num_labels}, {num_labels}] matrix, "
                f"got shape {tuple(matrix.shape)}"
            )
    return pair
