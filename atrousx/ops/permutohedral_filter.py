"""Gaussian filtering on the permutohedral lattice: the public function and class, the fake kernels,
gradients and autocast rule. The lattice is built in _permutohedral_lattice.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .._derivatives import multilinear, register_derivatives
from .._library import register_autocast
from ._check import check_device, check_floating, check_same_device
from ._kernels import register_fake
from ._permutohedral_lattice import MAX_FEATURES, Lattice, build_lattice, no_second_derivative

_apply = torch.ops.atrousx._permutohedral_apply.default
_corner_product = torch.ops.atrousx._permutohedral_corner_product.default

Scales = tuple[Tensor | None, Tensor | None]

Normalization = Literal["symmetric", "before", "after", "none"]
NORMALIZATIONS: tuple[str, ...] = get_args(Normalization)


def permutohedral_filter(
    values: Tensor, features: Tensor, normalization: Normalization = "symmetric"
) -> Tensor:
    r"""Filters values with a Gaussian of unit variance in feature space.

    .. math::
        y_i = \sum_j n'_i \, k(f_i, f_j) \, n_j \, v_j, \qquad
        k(f, g) \approx e^{-\frac12 \lVert f - g \rVert^2}

    The points i and j belong to the same image. The time is linear in the number of points: values
    are splatted on the permutohedral lattice, blurred along its D + 1 axes and sliced.

    With :math:`K_i = \sum_j k(f_i, f_j)`, ``normalization`` chooses the factors:
    :math:`n = n' = K^{-1/2}` ("symmetric"), :math:`n = 1/K, n' = 1` ("before"),
    :math:`n' = 1/K, n = 1` ("after", which gives weighted means) or 1 ("none").

    Results are bit-identical from run to run. Gradients with respect to values and features are
    exact. The gradient with respect to the features cannot be differentiated again.

    Args:
        values: ``[N, C, *]``, any number of channels and spatial dimensions, any strides.
        features: ``[N, D, *]``, 1 to 32 features per point, each already divided by its sigma.
            Float32 or float64; half types are computed in float32.
        normalization: "symmetric", "before", "after" or "none".

    Returns:
        ``[N, C, *]`` in the dtype and memory format of ``values``.

    Raises:
        TypeError: a tensor has the wrong type or dtype.
        ValueError: the shapes do not fit each other; the normalization is unknown; or features are
            not finite or are too large for the lattice.
        RuntimeError: the tensors are on different or unsupported devices.

    Source:
        Adams, Baek, Davis: Fast High-Dimensional Filtering Using the Permutohedral Lattice (2010);
        conventions as in Kraehenbuehl and Koltun (2011).

    Example:
        >>> import torch, atrousx
        >>> values = torch.tensor([[[1.0, 0.0, 0.0, 4.0]]])
        >>> features = torch.tensor([[[0.0, 0.1, 50.0, 50.1]]])
        >>> atrousx.ops.permutohedral_filter(values, features, normalization="after")
        tensor([[[0.5058, 0.5046, 2.0117, 2.0172]]])
    """
    _check(values, features, normalization)
    if values.numel() == 0 or values.is_meta:
        return values.clone()
    dtype = computing_dtype(values, features)
    lattice = build_lattice(features.to(dtype).reshape(*features.shape[:2], -1))
    return _filter(values, lattice, normalizer(lattice, normalization))


def _filter(values: Tensor, lattice: Lattice, scales: Scales) -> Tensor:
    """Filters ``values`` [N, C, *] in the dtype of the lattice; the result has their own dtype."""
    rows = values.to(lattice.corner_weights.dtype).movedim(1, -1)
    filtered = filter_rows(rows.reshape(-1, values.shape[1]), lattice, scales)
    result = filtered.reshape(rows.shape).movedim(-1, 1).to(values.dtype)
    return result.contiguous(memory_format=torch._prims_common.suggest_memory_format(values))


class PermutohedralLattice:
    r"""A lattice of features that is built once and filters any number of values.

    .. math:: y_i = \sum_j n'_i \, k(f_i, f_j) \, n_j \, v_j

    The symbols are those of ``permutohedral_filter``, and ``filter`` gives bit-identical results.
    Gradients reach the features through every call of ``filter``. To run several backward passes
    through one lattice, use ``retain_graph=True``.

    Args:
        features: ``[N, D, *]``, 1 to 32 features per point, each already divided by its sigma.
            The lattice computes in their dtype, float32 or float64; for half types in float32.
        normalization: "symmetric", "before", "after" or "none".

    Raises:
        TypeError: the features have the wrong type or dtype.
        ValueError: the shape is wrong; the normalization is unknown; or features are not finite or
            are too large for the lattice.
        RuntimeError: the device is not supported.

    Source:
        See ``permutohedral_filter``.

    Example:
        >>> import torch, atrousx
        >>> features = torch.tensor([[[0.0, 0.1, 50.0, 50.1]]])
        >>> lattice = atrousx.ops.PermutohedralLattice(features, normalization="after")
        >>> lattice.filter(torch.tensor([[[1.0, 0.0, 0.0, 4.0]]]))
        tensor([[[0.5058, 0.5046, 2.0117, 2.0172]]])
        >>> lattice.filter(torch.ones(1, 2, 4)).shape, lattice.vertices
        (torch.Size([1, 2, 4]), 4)
    """

    def __init__(self, features: Tensor, normalization: Normalization = "symmetric") -> None:
        check_floating("features", features)
        check_device("features", features)
        check_normalization(normalization)
        _check_features(features)
        self.normalization = normalization
        self._batch, self._size, self._device = len(features), features.shape[2:], features.device
        self._lattice: Lattice | None = None
        self._scales: Scales = (None, None)
        if features.numel() > 0:
            dtype = computing_dtype(features)
            self._lattice = build_lattice(features.to(dtype).reshape(*features.shape[:2], -1))
            self._scales = normalizer(self._lattice, normalization)

    @property
    def vertices(self) -> int:
        """The number of lattice vertices of all images together."""
        return 0 if self._lattice is None else self._lattice.neighbours.shape[2]

    def filter(self, values: Tensor) -> Tensor:
        """Filters ``values`` ``[N, C, *]``; batch and spatial sizes are those of the features.

        The result has the dtype of ``values``.

        Raises:
            TypeError: the values have the wrong type or dtype.
            ValueError: the batch or the spatial sizes differ from the features'.
            RuntimeError: the values are on another device.
        """
        check_floating("values", values)
        if values.device != self._device:
            raise RuntimeError(
                f"values must be on the device of the features ({self._device}), "
                f"got {values.device}"
            )
        expected = (self._batch, *self._size)
        if values.dim() < 2 or (values.shape[0], *values.shape[2:]) != expected:
            raise ValueError(
                f"values must have the batch and spatial sizes of the features, {expected}, "
                f"got shape {tuple(values.shape)}"
            )
        if self._lattice is None or values.numel() == 0:
            return values.clone()
        return _filter(values, self._lattice, self._scales)


def _check(values: Tensor, features: Tensor, normalization: str) -> None:
    for name, tensor in (("values", values), ("features", features)):
        check_floating(name, tensor)
        check_device(name, tensor)
    check_normalization(normalization)
    check_same_device("features", features, "values", values)
    if values.dim() < 2:
        raise ValueError(f"values must have a shape [N, C, *], got {tuple(values.shape)}")
    same = features.dim() == values.dim() and features.shape[0] == values.shape[0]
    if not same or features.shape[2:] != values.shape[2:]:
        raise ValueError(
            "features must have the batch and spatial sizes of values "
            f"({tuple(values.shape)}), got shape {tuple(features.shape)}"
        )
    _check_features(features)


def _check_features(features: Tensor) -> None:
    if features.dim() < 2 or not 1 <= features.shape[1] <= MAX_FEATURES:
        raise ValueError(
            f"features must have 1 to {MAX_FEATURES} per point, got shape {tuple(features.shape)}"
        )


def check_normalization(normalization: str) -> None:
    if normalization not in NORMALIZATIONS:
        raise ValueError(f"normalization must be one of {NORMALIZATIONS}, got {normalization!r}")


def computing_dtype(*tensors: Tensor) -> torch.dtype:
    """Returns the dtype in which a lattice computes: float64 if a tensor has it, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def normalizer(lattice: Lattice, normalization: Normalization) -> Scales:
    """Returns the factors [N P, 1] of points before splatting and after slicing, None for 1."""
    if normalization == "none":
        return None, None
    weights = lattice.corner_weights
    total = _apply(torch.ones_like(weights[:, :1]), *lattice, None, None, False) + 1e-20
    if normalization == "symmetric":
        scale = total.rsqrt()
        return scale, scale
    return (total.reciprocal(), None) if normalization == "before" else (None, total.reciprocal())


def filter_rows(rows: Tensor, lattice: Lattice, scales: Scales) -> Tensor:
    """Filters ``rows`` [N P, C], one for each point, with the scales of a normaliser."""
    before, after = scales
    if not any(s is not None and s.requires_grad for s in scales):
        filtered: Tensor = _apply(rows, *lattice, before, after, False)
        return filtered
    # The scales depend on the features, and their gradient flows through these products.
    filtered = _apply(rows if before is None else rows * before, *lattice, None, None, False)
    return filtered if after is None else filtered * after


@register_fake("_permutohedral_apply")
def _(values: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(values, memory_format=torch.contiguous_format)


@register_fake("_permutohedral_corner_product")
def _(rows: Tensor, values: Tensor, corner_weights: Tensor, *_: Any) -> Tensor:
    return rows.new_empty(corner_weights.shape)


def _save_apply(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.transpose = inputs[9]
    ctx.save_for_backward(*inputs[:9])


def _apply_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Returns the gradients of values and barycentric weights.

    K = A S B^T with splat weights B, blur S and slice weights A, so K^T = B S^T A^T. A barycentric
    weight is in A and in B, so its gradient is a sum of two inner products: the gradient at its
    point with the value at its vertex, and the value at its point with the gradient at its vertex.
    """
    values, *lattice, before, after = ctx.saved_tensors
    needs = ctx.needs_input_grad
    if needs[7] or needs[8]:
        raise RuntimeError("the scales of _permutohedral_apply are constants: multiply instead")
    to_values = to_weights = None
    if needs[0]:
        to_values = _apply(grad, *lattice, after, before, not ctx.transpose)
    if needs[1]:
        scaled_values = values if before is None else values * before
        scaled_grad = grad if after is None else grad * after
        to_weights = _corner_product(scaled_grad, scaled_values, *lattice, ctx.transpose)
        to_weights = to_weights + _corner_product(
            scaled_values, scaled_grad, *lattice, not ctx.transpose
        )
    return to_values, to_weights, *[None] * 8


def _apply_tangent(arguments: Sequence[Any], tangents: Sequence[Any]) -> Tensor:
    if any(tangent is not None for tangent in tangents[1:]):
        raise NotImplementedError(
            "_permutohedral_apply has no forward-mode derivative with respect to the lattice, and "
            "so permutohedral_filter none with respect to features"
        )
    return multilinear(_apply, 0)(arguments, tangents)


register_derivatives(_apply, _apply_gradient, _save_apply, _apply_tangent)
register_derivatives(_corner_product, no_second_derivative)
register_autocast(_apply, "float32")
