"""Mean-field inference for its gradient, and that gradient, over rows [P, L] by PyTorch and the
lattice's operators: for CUDA, and on the CPU to test the loops that do it there."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._kernels import register_fake, register_kernel

_apply = torch.ops.atrousx._permutohedral_apply.default
_corner_product = torch.ops.atrousx._permutohedral_corner_product.default
_TENSORS = 9


class _Term(NamedTuple):
    lattice: list[Tensor]
    before: Tensor | None
    after: Tensor | None
    compatibility: Tensor | None  # [L, L], its diagonal [L], or None for Potts'
    weight: float

    def message(self, rows: Tensor) -> Tensor:
        """What ``rows`` of filtered probabilities add to the logits."""
        if self.compatibility is None:
            return self.weight * rows
        if self.compatibility.dim() == 1:
            return -self.weight * rows * self.compatibility
        return -self.weight * (rows @ self.compatibility.T)

    def cause(self, slopes: Tensor) -> Tensor:
        """The gradient of those rows, given that of the logits."""
        if self.compatibility is None or self.compatibility.dim() == 1:
            return self.message(slopes)
        return -self.weight * (slopes @ self.compatibility)


def _given(tensor: Tensor) -> Tensor | None:
    return None if tensor.numel() == 0 else tensor


def _terms(tensors: list[Tensor], weights: list[float]) -> list[_Term]:
    terms = []
    for k, weight in enumerate(weights):
        *lattice, before, after, compatibility = tensors[k * _TENSORS : (k + 1) * _TENSORS]
        terms.append(_Term(lattice, _given(before), _given(after), _given(compatibility), weight))
    return terms


def _rows(labels: Tensor) -> Tensor:
    return labels.movedim(1, -1).reshape(-1, labels.shape[1])


def _labels(rows: Tensor, like: Tensor) -> Tensor:
    """A copy of the rows, also where a transposition leaves them as they are."""
    images, labels, points = like.shape
    turned = rows.view(images, points, labels).transpose(1, 2)
    return turned.clone(memory_format=torch.contiguous_format)


def states_of_rows(
    logits: Tensor, tensors: list[Tensor], weights: list[float], iterations: int
) -> tuple[Tensor, Tensor]:
    log_p = _rows(logits).log_softmax(-1)
    states = log_p.new_empty(iterations + 1, *log_p.shape)
    states[0] = log_p.exp()
    terms = _terms(tensors, weights)
    for i in range(iterations):
        log_q = log_p
        for term in terms:
            filtered = _apply(states[i], *term.lattice, term.before, term.after, False)
            log_q = log_q + term.message(filtered)
        torch.softmax(log_q, -1, out=states[i + 1])
    return _labels(states[-1], logits), states


def _slopes(grad: Tensor, q: Tensor) -> Tensor:
    weighted = grad * q
    return weighted.addcmul(q, weighted.sum(-1, keepdim=True), value=-1)


def gradients_of_rows(
    grad: Tensor,
    states: Tensor,
    tensors: list[Tensor],
    weights: list[float],
    of_energies: bool,
    of_corners: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """With slopes, the gradients of the logits that an iteration's probabilities came from."""
    terms = _terms(tensors, weights)
    points, labels = states.shape[1:]
    energies = grad.new_zeros(len(terms) if of_energies else 0, labels, labels)
    of_weights = [torch.zeros_like(term.lattice[0]) for term in terms if of_corners]
    scales = grad.new_zeros(len(terms) if of_corners else 0, 2, points)
    slopes = _slopes(_rows(grad), states[-1])
    total = slopes.clone()
    for q in reversed(states[:-1].unbind()):
        of_q = torch.zeros_like(q)
        for k, term in enumerate(terms):
            heard = _apply(slopes, *term.lattice, term.after, term.before, True)
            of_q += term.cause(heard)
            if of_energies:
                energies[k] += heard.T @ q
            if of_corners:
                _add_corners(term, q, slopes, of_weights[k], scales[k])
        slopes = _slopes(of_q, q)
        total += slopes
    corners = torch.cat([t.flatten() for t in of_weights]) if of_weights else grad.new_empty(0)
    return _labels(total, grad), energies, corners, scales


def _add_corners(term: _Term, q: Tensor, slopes: Tensor, corners: Tensor, scales: Tensor) -> None:
    """A corner's weight is in the filter twice, where Q is splatted and where it is sliced."""
    splatted = q if term.before is None else q * term.before
    pulled = slopes if term.after is None else slopes * term.after
    sliced = _corner_product(term.cause(slopes), splatted, *term.lattice, False)
    splat = _corner_product(term.message(q), pulled, *term.lattice, True)
    weights = term.lattice[0]
    scales[0] += (weights * splat).sum(1)
    scales[1] += (weights * sliced).sum(1)
    corners += splat if term.before is None else splat * term.before
    corners += sliced if term.after is None else sliced * term.after


register_kernel("_mean_field_states", "cuda")(states_of_rows)
register_kernel("_mean_field_backward", "cuda")(gradients_of_rows)


@register_fake("_mean_field_states")
def _(
    logits: Tensor, tensors: list[Tensor], weights: list[float], iterations: int
) -> tuple[Tensor, Tensor]:
    images, labels, points = logits.shape
    lanes = 32 // logits.element_size() if logits.device.type == "cpu" else 1
    padded = -(-labels // lanes) * lanes
    states = logits.new_empty(iterations + 1, images * points, padded)
    return logits.new_empty(logits.shape), states


@register_fake("_mean_field_backward")
def _(
    grad: Tensor,
    states: Tensor,
    tensors: list[Tensor],
    weights: list[float],
    of_energies: bool,
    of_corners: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    labels, points, terms = grad.shape[1], states.shape[1], len(weights)
    corners = sum(t.numel() for t in tensors[::_TENSORS]) if of_corners else 0
    return (
        grad.new_empty(grad.shape),
        grad.new_empty(terms if of_energies else 0, labels, labels),
        grad.new_empty(corners),
        grad.new_empty(terms if of_corners else 0, 2, points),
    )
