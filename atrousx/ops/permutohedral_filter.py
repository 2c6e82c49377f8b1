"""Gaussian filtering on the permutohedral lattice: the public function, the lattice's construction
from its operators, fake kernels, gradients and autocast rules."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._library import register_autocast
from ._check import check_device, check_floating

_build = torch.ops.atrousx._permutohedral_build.default
_embed = torch.ops.atrousx._permutohedral_embed.default
_embed_backward = torch.ops.atrousx._permutohedral_embed_backward.default
_pack = torch.ops.atrousx._permutohedral_pack.default
_neighbours = torch.ops.atrousx._permutohedral_neighbours.default
_apply = torch.ops.atrousx._permutohedral_apply.default
_corner_product = torch.ops.atrousx._permutohedral_corner_product.default

NORMALIZATIONS = ("symmetric", "before", "after", "none")
MAX_FEATURES = 32
# Elevated coordinates, at most (D + 1)^2 times the largest feature, stay below this: keys are built
# from int32 coordinates.
_COORDINATE_LIMIT = 2**29
_WORD_CAPACITY = 2**62


def permutohedral_filter(
    values: Tensor, features: Tensor, normalization: str = "symmetric"
) -> Tensor:
    r"""Filters values with a Gaussian of unit variance in feature space.

    .. math::
        y_i = \sum_j n'_i \, k(f_i, f_j) \, n_j \, v_j, \qquad
        k(f, g) \approx e^{-\frac12 \lVert f - g \rVert^2}

    over the points i, j of one image, in time linear in their number: values are splatted on the
    permutohedral lattice, blurred along its D + 1 axes and sliced. With
    :math:`K_i = \sum_j k(f_i, f_j)`, ``normalization`` chooses :math:`n = n' = K^{-1/2}`
    ("symmetric"), :math:`n = 1/K, n' = 1` ("before"), :math:`n' = 1/K, n = 1` ("after"; weighted
    means) or 1 ("none"). Results are bit-identical from run to run. Gradients with respect to
    values and features are exact; those of the features have no second derivative.

    Args:
        values: ``[N, C, *]``, any number of channels and of spatial dimensions, any strides.
        features: ``[N, D, *]``, 1 to 32 features per point, each already divided by its sigma.
            Float32 or float64; half types are computed in float32.
        normalization: "symmetric", "before", "after" or "none".

    Returns:
        ``[N, C, *]`` in the dtype and memory format of ``values``.

    Raises:
        TypeError: a tensor of the wrong type or dtype.
        ValueError: shapes that do not belong together, an unknown normalization, features that are
            not finite or too large for the lattice.
        RuntimeError: tensors on different or unknown devices.

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
    scales = normalizer(lattice, normalization)
    rows = values.to(dtype).movedim(1, -1)
    filtered = filter_rows(rows.reshape(-1, values.shape[1]), lattice, scales)
    result = filtered.reshape(rows.shape).movedim(-1, 1).to(values.dtype)
    return result.contiguous(memory_format=torch._prims_common.suggest_memory_format(values))


def _check(values: Tensor, features: Tensor, normalization: str) -> None:
    for name, tensor in (("values", values), ("features", features)):
        check_floating(name, tensor)
        check_device(name, tensor)
    check_normalization(normalization)
    if values.device != features.device:
        raise RuntimeError(
            f"features must be on the device of values ({values.device}), got {features.device}"
        )
    if values.dim() < 2:
        raise ValueError(f"values must have a shape [N, C, *], got {tuple(values.shape)}")
    same = features.dim() == values.dim() and features.shape[0] == values.shape[0]
    if not same or features.shape[2:] != values.shape[2:]:
        raise ValueError(
            "features must have the batch and spatial sizes of values "
            f"({tuple(values.shape)}), got shape {tuple(features.shape)}"
        )
    if not 1 <= features.shape[1] <= MAX_FEATURES:
        raise ValueError(
            f"features must have 1 to {MAX_FEATURES} per point, got shape {tuple(features.shape)}"
        )


def check_normalization(normalization: str) -> None:
    if normalization not in NORMALIZATIONS:
        raise ValueError(f"normalization must be one of {NORMALIZATIONS}, got {normalization!r}")


def computing_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype in which lattices are computed: float64 where one tensor is, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


class Lattice(NamedTuple):
    """The lattice of a batch of images as tensors: E = N P (D + 1) corners, M vertices."""

    corner_weights: Tensor  # [N P, D + 1] barycentric weights of the vertices around each point
    corner_vertices: Tensor  # [N P, D + 1] those vertices
    starts: Tensor  # [M + 1] entries of a vertex in the next two
    entry_points: Tensor  # [E] the points around each vertex, in increasing order
    entry_weights: Tensor  # [E] their weights there
    neighbours: Tensor  # [D + 1, 2, M] the vertices a step ahead and behind, or -1


def build_lattice(features: Tensor) -> Lattice:
    """The lattice of ``features`` [N, D, P], float32 or float64, N and P not 0."""
    return Lattice(*_build(features))


Scales = tuple[Tensor | None, Tensor | None]


def normalizer(lattice: Lattice, normalization: str) -> Scales:
    """What points are multiplied by before splatting and after slicing, [N P, 1] each."""
    if normalization == "none":
        return None, None
    weights = lattice.corner_weights
    total = _apply(torch.ones_like(weights[:, :1]), *lattice, None, None, False) + 1e-20
    if normalization == "symmetric":
        scale = total.rsqrt()
        return scale, scale
    return (total.reciprocal(), None) if normalization == "before" else (None, total.reciprocal())


def filter_rows(rows: Tensor, lattice: Lattice, scales: Scales) -> Tensor:
    """Filters ``rows`` [N P, C], one per point, with a normaliser's scales."""
    before, after = scales
    if not any(s is not None and s.requires_grad for s in scales):
        filtered: Tensor = _apply(rows, *lattice, before, after, False)
        return filtered
    # The normaliser depends on the features: its gradient flows through these products.
    filtered = _apply(rows if before is None else rows * before, *lattice, None, None, False)
    return filtered if after is None else filtered * after


# The lattice is built by operators of ours around PyTorch's sort, scan and indexing, which no
# kernel of this package could better. One operator as a whole, because the number of vertices and
# the checks below depend on data: a compiler that traces a caller sees one opaque call.
@torch.library.impl("atrousx::_permutohedral_build", ("cpu", "cuda"))
def _(features: Tensor) -> tuple[Tensor, ...]:
    images, dims, points = features.shape
    _check_magnitude(features)
    base, rank, weights = _embed(features)
    words, strides, minima = _key_layout(base, images)
    keys = _pack(base, rank, words, strides, minima)
    order, keys = _sort(keys)
    # A vertex begins wherever a key differs from the one before it.
    begins = torch.ones_like(order, dtype=torch.bool)
    begins[1:] = (keys[:, 1:] != keys[:, :-1]).any(0)
    starts = begins.nonzero().flatten()
    steps = _neighbour_steps(dims, words, strides).to(features.device)
    neighbours = _neighbours(keys[:, starts], steps)
    index = torch.int32 if len(order) < 2**31 else torch.int64
    corner_vertices = torch.empty_like(order, dtype=index)
    corner_vertices[order] = (begins.cumsum(0) - 1).to(index)
    return (
        weights.view(images * points, dims + 1),
        corner_vertices.view(images * points, dims + 1),
        torch.cat([starts, starts.new_tensor([len(order)])]).to(index),
        (order // (dims + 1)).to(index),
        weights.flatten()[order],
        neighbours.to(index),
    )


def _check_magnitude(features: Tensor) -> None:
    low, high = torch.stack(features.aminmax()).tolist()
    largest = max(-low, high)
    limit = _COORDINATE_LIMIT / (features.shape[1] + 1) ** 2
    if not math.isfinite(largest):
        raise ValueError("features must be finite, got NaN or infinity")
    if largest > limit:
        raise ValueError(
            f"features must be at most {limit:.4g} in magnitude where there are "
            f"{features.shape[1]} per point, got {largest:.4g}: divide by a larger sigma"
        )


def _key_layout(base: Tensor, images: int) -> tuple[list[int], list[int], list[int]]:
    """Words, strides and minima of the key's digits: the image, then D coordinates.

    A digit has room for its coordinate's range, the vertices around it (D on either side) and their
    neighbours (D more). Digits are dealt to words in order, so that keys compare word by word.
    """
    dims = base.shape[2] - 1
    lows, highs = torch.stack(base.flatten(0, 1).aminmax(dim=0)).tolist()
    minima = [0] + [low - 2 * dims for low in lows[:dims]]
    extents = [images] + [
        high - low + 4 * dims + 1 for low, high in zip(lows[:dims], highs[:dims], strict=True)
    ]
    words, capacity = [0], extents[0]
    for extent in extents[1:]:
        capacity *= extent
        new_word = capacity > _WORD_CAPACITY
        words.append(words[-1] + new_word)
        if new_word:
            capacity = extent
    strides = [1] * len(extents)
    for i in reversed(range(len(extents) - 1)):
        if words[i] == words[i + 1]:
            strides[i] = strides[i + 1] * extents[i + 1]
    return words, strides, minima


def _sort(keys: Tensor) -> tuple[Tensor, Tensor]:
    """The stable order of ``keys`` [words, E] and the keys in it."""
    _, order = keys[-1].sort(stable=True)
    for word in reversed(keys[:-1].unbind()):
        order = order[word[order].sort(stable=True)[1]]
    return order, keys[:, order]


def _neighbour_steps(dims: int, words: list[int], strides: list[int]) -> Tensor:
    """[D + 1, words]: what leads from a key to that of the next vertex along each axis."""
    steps = torch.zeros(dims + 1, words[-1] + 1, dtype=torch.int64)
    for axis in range(dims + 1):
        for i in range(dims):
            steps[axis, words[i + 1]] += strides[i + 1] * (dims if i == axis else -1)
    return steps


@torch.library.register_fake("atrousx::_permutohedral_build")
def _(features: Tensor) -> tuple[Tensor, ...]:
    images, dims, points = features.shape
    vertices = torch.library.get_ctx().new_dynamic_size()
    corners = images * points * (dims + 1)
    index = torch.int32 if corners < 2**31 else torch.int64
    return (
        features.new_empty(images * points, dims + 1),
        features.new_empty(images * points, dims + 1, dtype=index),
        features.new_empty(vertices + 1, dtype=index),
        features.new_empty(corners, dtype=index),
        features.new_empty(corners),
        features.new_empty(dims + 1, 2, vertices, dtype=index),
    )


@torch.library.register_fake("atrousx::_permutohedral_embed")
def _(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    images, dims, points = features.shape
    shape = (images, points, dims + 1)
    return (
        features.new_empty(shape, dtype=torch.int32),
        features.new_empty(shape, dtype=torch.uint8),
        features.new_empty(shape),
    )


@torch.library.register_fake("atrousx::_permutohedral_embed_backward")
def _(grad_weights: Tensor, rank: Tensor) -> Tensor:
    images, points, width = grad_weights.shape
    return grad_weights.new_empty(images, width - 1, points)


@torch.library.register_fake("atrousx::_permutohedral_pack")
def _(base: Tensor, rank: Tensor, words: list[int], *_: list[int]) -> Tensor:
    return base.new_empty(words[-1] + 1, base.numel(), dtype=torch.int64)


@torch.library.register_fake("atrousx::_permutohedral_neighbours")
def _(keys: Tensor, steps: Tensor) -> Tensor:
    return keys.new_empty(steps.shape[0], 2, keys.shape[1])


@torch.library.register_fake("atrousx::_permutohedral_apply")
def _(values: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(values, memory_format=torch.contiguous_format)


@torch.library.register_fake("atrousx::_permutohedral_corner_product")
def _(rows: Tensor, values: Tensor, corner_weights: Tensor, *_: Any) -> Tensor:
    return rows.new_empty(corner_weights.shape)


def _save_build(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs)
    # The entries' weights are the corners' in another order: gradients go to the corners'.
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _build_gradient(ctx: Any, *grads: Tensor | None) -> Tensor | None:
    (features,) = ctx.saved_tensors
    grad_weights = grads[0]
    if grad_weights is None:
        return None
    _, rank, _ = _embed(features.detach())
    gradient: Tensor = _embed_backward(grad_weights.view(rank.shape), rank)
    return gradient


def _save_apply(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.transpose = inputs[9]
    ctx.save_for_backward(*inputs[:9])


def _apply_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """K = A S B^T with splat weights B, blur S and slice weights A, so K^T = B S^T A^T.

    A barycentric weight appears in A and in B: its gradient is the inner product of its point's
    gradient with its vertex's value, plus that of its point's value with its vertex's gradient.
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


def _no_gradient(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError("permutohedral_filter has no second derivative with respect to features")


torch.library.register_autograd(_build, _build_gradient, setup_context=_save_build)
torch.library.register_autograd(_apply, _apply_gradient, setup_context=_save_apply)
for _op in (_embed, _embed_backward, _corner_product):
    torch.library.register_autograd(_op, _no_gradient)
for _op in (_build, _apply):
    register_autocast(_op, to_lower_precision=False)
