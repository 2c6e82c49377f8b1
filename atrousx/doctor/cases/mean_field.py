"""Cases of mean-field inference over points, its gradients, and the layer DenseCRF."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ...nn.dense_crf import DenseCRF, pixel_features
from ...ops._mean_field import Term, mean_field
from ...ops._permutohedral_lattice import Lattice, assemble_by_sorting
from .. import twins
from ..devices import Device
from .case import MAPS, PLAIN, ROWS, WIDE, Case, Tensors, gradients_of

_ops = torch.ops.atrousx
_TENSORS = 9  # of a term: six of its lattice, two scales, its compatibility


class Field(NamedTuple):
    images: int
    labels: int
    points: int
    iterations: int
    potts: bool
    weights: tuple[float, float] = (0.7, 1.3)

    def make(self) -> Tensors:
        """Returns logits, gradient, and two terms, of 2 and of 5 features."""
        shape = (self.images, self.labels, self.points)
        logits, grad = (torch.randn(shape).double() for _ in range(2))
        return logits, grad, *self._term(2), *self._term(5)

    def _term(self, dims: int) -> Tensors:
        lattice = _ops._permutohedral_build(torch.randn(self.images, dims, self.points).double())
        before, after = (torch.rand(len(lattice[0]), 1).double() + 0.5 for _ in range(2))
        size = 0 if self.potts else self.labels
        return *lattice, before, after, torch.rand(size, size).double()

    def given(self, t: Tensors) -> tuple[Tensor, list[Tensor], list[float]]:
        """Returns arguments of the operators; an empty compatibility stands for Potts' costs."""
        terms = [x.new_empty(0) if x.numel() == 0 else x for x in t[2:]]
        return t[0], terms, list(self.weights)

    def twin(self, t: Tensors) -> Tensor:
        terms = [t[2 : 2 + _TENSORS], t[2 + _TENSORS :]]
        return twins.mean_field(t[0], terms, self.weights, self.iterations)


QUICK = {
    "3 labels, Potts": Field(2, 3, 30, 2, True),
    "5 labels, compatibilities": Field(1, 5, 40, 2, False),
}
FULL = {
    "21 labels, Potts": Field(2, 21, 500, 5, True),
    "21 labels, compatibilities": Field(1, 21, 300, 5, False),
    "33 labels, one iteration": Field(1, 33, 100, 1, False),
}


def cases(device: Device, quick: bool) -> Iterator[Case]:
    for name, field in (QUICK if quick else {**QUICK, **FULL}).items():
        yield from _operators(name, field)
        yield _gradients(name, field)
    yield from _layer(quick)


def _operators(name: str, f: Field) -> Iterator[Case]:
    def forward(t: Tensors, tf32: bool) -> Tensors:
        return (_ops._mean_field(*f.given(t), f.iterations),)

    def states(t: Tensors, tf32: bool) -> Tensors:
        # The format of the states depends on the device; the case of the backward operator
        # below checks them.
        return (_ops._mean_field_states(*f.given(t), f.iterations)[0],)

    def backward(t: Tensors, tf32: bool) -> Tensors:
        logits, terms, weights = f.given(t)
        _, kept = _ops._mean_field_states(logits, terms, weights, f.iterations)
        found = _ops._mean_field_backward(t[1], kept, terms, weights, True, True)
        to_logits, energies, corners, scales = found
        return to_logits, _energies(f, energies), corners, scales

    def torch_backward(t: Tensors) -> Tensors:
        # Potts' costs are given as a matrix, so that they have a gradient.
        potts = 1 - torch.eye(f.labels, dtype=t[0].dtype)
        filled = tuple(potts.clone() if x.numel() == 0 else x for x in t)
        places = [i for k in (2, 2 + _TENSORS) for i in (k, k + 6, k + 7, k + 8)]
        to_logits, *rest = gradients_of(
            lambda leaves: (f.twin(leaves),), filled, t[1], (0, *places)
        )
        terms = [rest[:4], rest[4:]]
        # The operator's energies contain neither the weight nor the sign.
        energies = [-mu / w for (*_, mu), w in zip(terms, f.weights, strict=True)]
        corners = torch.cat([term[0].flatten() for term in terms])
        scales = torch.stack([torch.stack([s.flatten() for s in term[1:3]]) for term in terms])
        return to_logits, _energies(f, torch.stack(energies)), corners, scales

    length = f.iterations * f.points * f.labels
    for operator, run, twin in (
        ("_mean_field", forward, lambda t: (f.twin(t),)),
        ("_mean_field_states", states, lambda t: (f.twin(t),)),
        ("_mean_field_backward", backward, torch_backward),
    ):
        yield Case(operator, "forward", name, f.make, run, twin, length, WIDE, ROWS, judged=False)


def _energies(f: Field, energies: Tensor) -> Tensor:
    """Returns energies [terms, L, L]; for Potts' costs only the diagonals, which are defined."""
    return energies.diagonal(dim1=1, dim2=2).contiguous() if f.potts else energies


def _gradients(name: str, f: Field) -> Case:
    wanted = (0, 2, 2 + _TENSORS) if f.potts else (0, 2, 2 + _TENSORS - 1, 2 + 2 * _TENSORS - 1)

    def run(t: Tensors, tf32: bool) -> Tensors:
        def infer(leaves: Tensors) -> Tensors:
            terms = []
            for k, weight in enumerate(f.weights):
                *lattice, before, after, mu = leaves[2 + k * _TENSORS :][:_TENSORS]
                matrix = None if mu.numel() == 0 else mu
                terms.append(Term(Lattice(*lattice), (before, after), weight, matrix))
            return (mean_field(leaves[0], terms, f.iterations),)

        return gradients_of(infer, t, t[1], wanted)

    def twin(t: Tensors) -> Tensors:
        return gradients_of(lambda leaves: (f.twin(leaves),), t, t[1], wanted)

    length = f.iterations * f.points * f.labels
    return Case(
        "_mean_field", "gradients", name, f.make, run, twin, length, WIDE, ROWS, judged=False
    )


def _layer_by_torch(
    logits: Tensor, image: Tensor, sigmas: tuple[float, float, float], iterations: int
) -> Tensor:
    terms = []
    for coloured, divisors in (
        (True, sigmas[:1] * 2 + sigmas[1:2] * 3),
        (False, sigmas[2:] * 2),
    ):
        features = pixel_features(image, coloured) / torch.tensor(divisors).double()[:, None]
        lattice = assemble_by_sorting(features)
        scale = twins.symmetric_scale(lattice)
        terms.append((*lattice, scale, scale, scale.new_empty(0)))
    q = twins.mean_field(logits.flatten(2), terms, (4.0, 3.0), iterations)
    return q.view_as(logits)


def _layer(quick: bool) -> Iterator[Case]:
    labels, size = (3, (6, 7)) if quick else (21, (33, 30))
    iterations = 2 if quick else 5
    # Of the bilateral kernel in pixels and in grey levels, of the Gaussian kernel in pixels.
    sigmas = (9.0, 20.0, 3.0)

    def make() -> Tensors:
        """Returns logits, gradient, and an image whose values every dtype represents exactly."""
        logits, grad = (torch.randn(1, labels, *size).double() for _ in range(2))
        ramp = torch.linspace(20, 200, size[1]).double().expand(1, 3, *size)
        return logits, grad, (ramp + 9 * torch.randn(1, 3, *size)).round()

    def forward(t: Tensors, tf32: bool) -> Tensors:
        crf = DenseCRF(
            labels,
            bilateral_sigma_xy=sigmas[0],
            bilateral_sigma_rgb=sigmas[1],
            gaussian_sigma_xy=sigmas[2],
            iterations=iterations,
        )
        return (crf(t[0], t[2]),)

    def twin(t: Tensors) -> Tensors:
        return (_layer_by_torch(t[0], t[2], sigmas, iterations),)

    def gradients(t: Tensors, tf32: bool) -> Tensors:
        return gradients_of(lambda leaves: forward(leaves, tf32), t, t[1], (0,))

    def torch_gradients(t: Tensors) -> Tensors:
        return gradients_of(twin, t, t[1], (0,))

    length = 10 * size[0] * size[1] * labels
    for pass_name, run, by_torch in (
        ("forward", forward, twin),
        ("gradients", gradients, torch_gradients),
    ):
        yield Case(
            "DenseCRF", pass_name, "a photograph", make, run, by_torch, length, PLAIN, MAPS,
            judged=False,
        )  # fmt: skip
