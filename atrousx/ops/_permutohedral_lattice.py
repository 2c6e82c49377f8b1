"""Builds the permutohedral lattice of a batch of images by atrousx's operators and PyTorch's sort.

The operators' fake kernels, gradients and autocast rule are here, too.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._derivatives import register_derivatives
from .._library import register_autocast
from ..backend.self_check import ensure_right
from ._kernels import register_fake, register_kernel

_build = torch.ops.atrousx._permutohedral_build.default
_assemble = torch.ops.atrousx._permutohedral_assemble.default
_embed = torch.ops.atrousx._permutohedral_embed.default
_embed_backward = torch.ops.atrousx._permutohedral_embed_backward.default
_pack = torch.ops.atrousx._permutohedral_pack.default
_neighbours = torch.ops.atrousx._permutohedral_neighbours.default

MAX_FEATURES = 32
# Elevated coordinates are at most (D + 1)^2 times the largest feature. They must stay below this
# limit, because keys are built from int32 coordinates.
_COORDINATE_LIMIT = 2**29
_WORD_CAPACITY = 2**62
# The number of elements that PyTorch can sort at once on CUDA.
_SORT_CAPACITY = 2**31 - 1


class Lattice(NamedTuple):
    """The lattice of a batch of images as tensors: E = N P (D + 1) corners, M vertices."""

    corner_weights: Tensor  # [N P, D + 1] barycentric weights of the vertices around each point
    corner_vertices: Tensor  # [N P, D + 1] the numbers of these vertices
    starts: Tensor  # [M + 1] where the entries of each vertex start in the next two tensors
    entry_points: Tensor  # [E] the points around each vertex, in increasing order
    entry_weights: Tensor  # [E] the weights of the vertex at these points
    neighbours: Tensor  # [D + 1, 2, M] the vertices one step ahead and one behind, or -1


def build_lattice(features: Tensor) -> Lattice:
    """Builds the lattice of ``features`` [N, D, P], float32 or float64; N and P must not be 0."""
    ensure_right("permutohedral_filter", features)
    return Lattice(*_build(features))


def drop_points(lattice: Lattice, points: int) -> Lattice:
    """Returns a lattice of the first ``points`` points only, with all vertices."""
    if points == len(lattice.corner_vertices):
        return lattice
    kept = lattice.entry_points < points
    before = torch.nn.functional.pad(kept.cumsum(0), (1, 0)).to(lattice.starts.dtype)
    return Lattice(
        lattice.corner_weights[:points],
        lattice.corner_vertices[:points],
        before[lattice.starts],
        lattice.entry_points[kept],
        lattice.entry_weights[kept],
        lattice.neighbours,
    )


# The checks and the construction are one operator. Both depend on data, so a compiler that traces
# the caller must see one opaque call.
@register_kernel("_permutohedral_build", ("cpu", "cuda"))
def _(features: Tensor) -> tuple[Tensor, ...]:
    _check_magnitude(features)
    result: tuple[Tensor, ...] = _assemble(features)
    return result


def assemble_by_sorting(features: Tensor) -> tuple[Tensor, ...]:
    """Builds a lattice with a few kernels and PyTorch's sort, scan and indexing.

    CUDA uses it, because PyTorch sorts fast there. On the CPU it serves to test the CPU's own
    construction. Vertices are in the order of their keys.
    """
    images, dims, points = features.shape
    base, rank, weights = _embed(features)
    words, strides, minima = _key_layout(base, images)
    keys = _pack(base, rank, words, strides, minima)
    order = _order(keys, images)
    keys = keys[:, order]
    # A new vertex starts wherever a key differs from the key before it.
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


register_kernel("_permutohedral_assemble", "cuda")(assemble_by_sorting)


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
    """Returns word, stride and minimum of each digit of a key: the image, then D coordinates.

    A digit has room for the range of its coordinate, for the vertices around it (D on either side)
    and for their neighbours (D more). Digits are assigned to words in order, so that keys can be
    compared word by word.
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


def _order(keys: Tensor, images: int) -> Tensor:
    """Returns the permutation that sorts ``keys`` [words, E] stably."""
    if keys.shape[1] <= _SORT_CAPACITY:
        return _order_of_words(keys)
    # The first digit of a key is its image, so images can be sorted one by one.
    corners = keys.shape[1] // images
    parts = [_order_of_words(part) for part in keys.split(corners, dim=1)]
    return torch.cat([part + n * corners for n, part in enumerate(parts)])


def _order_of_words(keys: Tensor) -> Tensor:
    order = _order_of_numbers(keys[-1])
    for word in reversed(keys[:-1].unbind()):
        order = order[_order_of_numbers(word[order])]
    return order


def _order_of_numbers(numbers: Tensor) -> Tensor:
    """Returns ``numbers.argsort(stable=True)``.

    If there are more numbers than PyTorch can sort at once, quicksort divides them into parts.
    """
    count = len(numbers)
    if count <= _SORT_CAPACITY:
        return numbers.sort(stable=True)[1]
    # The median of an evenly spaced sample. It equals an element, so the parts become smaller.
    pivot = numbers[:: max(1, count // 4096)].median()
    less, more = ((mask.nonzero().flatten()) for mask in (numbers < pivot, numbers > pivot))
    equal = (numbers == pivot).nonzero().flatten()
    parts = [places[_order_of_numbers(numbers[places])] for places in (less, more)]
    return torch.cat([parts[0], equal, parts[1]])


def _neighbour_steps(dims: int, words: list[int], strides: list[int]) -> Tensor:
    """Returns [D + 1, words]: the difference of the keys of neighbouring vertices on each axis."""
    steps = torch.zeros(dims + 1, words[-1] + 1, dtype=torch.int64)
    for axis in range(dims + 1):
        for i in range(dims):
            steps[axis, words[i + 1]] += strides[i + 1] * (dims if i == axis else -1)
    return steps


@register_fake("_permutohedral_assemble")
@register_fake("_permutohedral_build")
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


@register_fake("_permutohedral_embed")
def _(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    images, dims, points = features.shape
    shape = (images, points, dims + 1)
    return (
        features.new_empty(shape, dtype=torch.int32),
        features.new_empty(shape, dtype=torch.uint8),
        features.new_empty(shape),
    )


@register_fake("_permutohedral_embed_backward")
def _(grad_weights: Tensor, rank: Tensor) -> Tensor:
    images, points, width = grad_weights.shape
    return grad_weights.new_empty(images, width - 1, points)


@register_fake("_permutohedral_pack")
def _(base: Tensor, rank: Tensor, words: list[int], *_: list[int]) -> Tensor:
    return base.new_empty(words[-1] + 1, base.numel(), dtype=torch.int64)


@register_fake("_permutohedral_neighbours")
def _(keys: Tensor, steps: Tensor) -> Tensor:
    return keys.new_empty(steps.shape[0], 2, keys.shape[1])


def _save_build(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs)
    # entry_weights are corner_weights in another order; only corner_weights have a gradient.
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


def no_second_derivative(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError("permutohedral_filter has no second derivative with respect to features")


register_derivatives(_build, _build_gradient, _save_build)
for _op in (_assemble, _embed, _embed_backward):
    register_derivatives(_op, no_second_derivative)
register_autocast(_build, "float32")
