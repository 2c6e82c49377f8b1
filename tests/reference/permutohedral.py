"""A slow permutohedral lattice and dense CRF: float64, with one dictionary of vertices."""

from __future__ import annotations

import numpy as np

Vertex = tuple[int, ...]


def projection(dims: int) -> np.ndarray:
    """Returns [D + 1, D]: from features to the hyperplane of zero sum, where the blur has variance
    1.

    Column j is orthogonal to the others and to (1, ..., 1): +1 in rows 0..j, -(j + 1) in row j + 1.
    """
    basis = np.zeros((dims + 1, dims))
    for j in range(dims):
        basis[: j + 1, j] = 1.0
        basis[j + 1, j] = -(j + 1.0)
    return basis / np.linalg.norm(basis, axis=0) * np.sqrt(2.0 / 3.0) * (dims + 1)


def enclosing_simplex(feature: np.ndarray) -> list[tuple[Vertex, float]]:
    """Returns the D + 1 lattice vertices around one point, and its barycentric weights."""
    dims = len(feature)
    point = projection(dims) @ feature
    # The nearest point whose coordinates are multiples of D + 1. Its sum may be wrong by a few
    # units. The coordinates with the extreme residuals are changed to correct that.
    nearest = np.rint(point / (dims + 1)) * (dims + 1)
    excess = round(nearest.sum() / (dims + 1))
    order = np.argsort(-(point - nearest), kind="stable")
    if excess > 0:
        nearest[order[dims + 1 - excess :]] -= dims + 1
    elif excess < 0:
        nearest[order[:-excess]] += dims + 1
    # rank[i] is the number of larger residuals. Equal residuals keep their order.
    rank = np.empty(dims + 1, dtype=int)
    rank[order] = (np.arange(dims + 1) + excess) % (dims + 1)
    residual = np.empty(dims + 1)
    residual[rank] = (point - nearest) / (dims + 1)
    simplex = []
    for k in range(dims + 1):
        vertex = nearest + np.where(rank <= dims - k, k, k - (dims + 1))
        # The barycentric weight of vertex k is the gap between neighbouring sorted residuals.
        weight = (
            1.0 - residual[0] + residual[dims]
            if k == 0
            else residual[dims - k] - residual[dims - k + 1]
        )
        simplex.append((tuple(int(v) for v in vertex), float(weight)))
    return simplex


def axis_neighbours(vertex: Vertex, axis: int) -> tuple[Vertex, Vertex]:
    dims = len(vertex) - 1
    ahead = tuple(v + dims if i == axis else v - 1 for i, v in enumerate(vertex))
    behind = tuple(v - dims if i == axis else v + 1 for i, v in enumerate(vertex))
    return ahead, behind


class Lattice:
    """The lattice of one image. ``features`` [P, D] are already divided by the sigmas."""

    def __init__(self, features: np.ndarray) -> None:
        self.dims = features.shape[1]
        self.simplices = [enclosing_simplex(f) for f in np.asarray(features, np.float64)]
        self.vertices = {vertex for simplex in self.simplices for vertex, _ in simplex}

    def filter(self, values: np.ndarray, normalization: str = "none") -> np.ndarray:
        """[P, C] -> [P, C]"""
        values = np.asarray(values, np.float64)
        if normalization == "none":
            return self._filter(values)
        total = self._filter(np.ones((len(values), 1))) + 1e-20
        if normalization == "symmetric":
            return self._filter(values / np.sqrt(total)) / np.sqrt(total)
        if normalization == "before":
            return self._filter(values / total)
        assert normalization == "after"
        return self._filter(values) / total

    def _filter(self, values: np.ndarray) -> np.ndarray:
        grid = {vertex: np.zeros(values.shape[1]) for vertex in self.vertices}
        for value, simplex in zip(values, self.simplices, strict=True):
            for vertex, weight in simplex:
                grid[vertex] = grid[vertex] + weight * value
        nothing = np.zeros(values.shape[1])
        for axis in range(self.dims + 1):
            grid = {
                vertex: centre
                + 0.5 * sum((grid.get(n, nothing) for n in axis_neighbours(vertex, axis)), nothing)
                for vertex, centre in grid.items()
            }
        scale = 1.0 / (1.0 + 2.0**-self.dims)
        rows = [sum((w * grid[v] for v, w in simplex), nothing) for simplex in self.simplices]
        return scale * np.reshape(rows, values.shape)


def filter_images(
    values: np.ndarray, features: np.ndarray, normalization: str = "symmetric"
) -> np.ndarray:
    """[N, C, *], [N, D, *] -> [N, C, *]"""
    out = np.empty(values.shape)
    for n in range(len(values)):
        points = features[n].reshape(features.shape[1], -1).T
        flat = values[n].reshape(values.shape[1], -1).T
        filtered = Lattice(points).filter(flat, normalization)
        out[n] = filtered.T.reshape(values.shape[1:])
    return out


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def mean_field(
    log_probabilities: np.ndarray,
    kernels: list[tuple[np.ndarray, np.ndarray]],
    iterations: int,
    normalization: str = "symmetric",
) -> np.ndarray:
    """[P, L] log P and kernels (features [P, D], compatibility [L, L]) -> [P, L]."""
    log_probabilities = np.asarray(log_probabilities, np.float64)
    lattices = [(Lattice(features), np.asarray(mu)) for features, mu in kernels]
    q = softmax(log_probabilities)
    for _ in range(iterations):
        energy = -log_probabilities
        for lattice, mu in lattices:
            energy = energy + lattice.filter(q, normalization) @ mu.T
        q = softmax(-energy)
    return q
