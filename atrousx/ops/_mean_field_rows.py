"""Mean-field iterations over rows [P, L], one for each point, by PyTorch and the lattice operators.

``_by_parts`` of _mean_field.py and CUDA's operators for training use them. On the CPU they serve to
test the CPU's own loops.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ._kernels import register_fake, register_kernel
from ._permutohedral_lattice import Lattice
from .permutohedral_filter import Scales, filter_rows

_apply = torch.ops.atrousx._permutohedral_apply.default
_corner_product = torch.ops.atrousx._permutohedral_corner_product.default
_TENSORS = 9


class Term(NamedTuple):
    """One Gaussian kernel of the energy."""

    lattice: Lattice
    scales: Scales  # of the normaliser
    weight: float | Tensor
    compatibility: Tensor | None  # [L, L], row: the label that pays; [L]: a diagonal; None: Potts

    def message(self, filtered: Tensor) -> Tensor:
        """Returns what the filtered probabilities add to the logits.

        With Potts' costs, a pair of different labels costs the weight. Probabilities sum to one
        over the labels. So the cost is a constant minus the weight times the probability of the
        same label. Softmax ignores the constant.
        """
        if self.compatibility is None:
            return self.weight * filtered
        if self.compatibility.dim() == 1:
            return -self.weight * filtered * self.compatibility
        return -self.weight * (filtered @ self.compatibility.T)

    def cause(self, slopes: Tensor) -> Tensor:
        """Returns the gradient of the filtered probabilities, given that of the logits."""
        if self.compatibility is None or self.compatibility.dim() == 1:
            return self.message(slopes)
        return -self.weight * (slopes @ self.compatibility)

    def filter(self, rows: Tensor) -> Tensor:
        return filter_rows(rows, self.lattice, self.scales)

    def filter_back(self, rows: Tensor) -> Tensor:
        """Filters rows by the transposed filter."""
        before, after = self.scales
        found: Tensor = _apply(rows, *self.lattice, after, before, True)
        return found


def less_message(log_q: Tensor, q: Tensor, term: Term) -> Tensor:
    """Returns ``log_q`` minus the cost of each label given the probabilities ``q``, all [P, L]."""
    filtered = term.filter(q)
    if term.compatibility is None and not isinstance(term.weight, Tensor):
        return log_q.add(filtered, alpha=term.weight)
    return log_q + term.message(filtered)


def less_messages(log_p: Tensor, q: Tensor, terms: Sequence[Term]) -> Tensor:
    """Returns the logits of the next Q: ``log_p`` minus the messages of all terms."""
    for term in terms:
        log_p = less_message(log_p, q, term)
    return log_p


def _given(tensor: Tensor) -> Tensor | None:
    return None if tensor.numel() == 0 else tensor


def _terms(tensors: list[Tensor], weights: list[float]) -> list[Term]:
    terms = []
    for k, weight in enumerate(weights):
        *lattice, before, after, compatibility = tensors[k * _TENSORS : (k + 1) * _TENSORS]
        scales = (_given(before), _given(after))
        terms.append(Term(Lattice(*lattice), scales, weight, _given(compatibility)))
    return terms


def _rows(labels: Tensor) -> Tensor:
    return labels.movedim(1, -1).reshape(-1, labels.shape[1])


def _labels(rows: Tensor, like: Tensor) -> Tensor:
    """Copies rows [N P, L] to labels [N, L, P], even if no transposition is needed."""
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
        log_q = less_messages(log_p, states[i], terms)
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
    """Computes the gradients of logits, energies, corners and scales, from the last state back.

    ``slopes`` are the gradients of the logits of an iteration's probabilities.
    """
    terms = _terms(tensors, weights)
    points, labels = states.shape[1:]
    energies = grad.new_zeros(len(terms) if of_energies else 0, labels, labels)
    of_weights = [torch.zeros_like(term.lattice.corner_weights) for term in terms if of_corners]
    scales = grad.new_zeros(len(terms) if of_corners else 0, 2, points)
    slopes = _slopes(_rows(grad), states[-1])
    total = slopes.clone()
    for q in reversed(states[:-1].unbind()):
        of_q = torch.zeros_like(q)
        for k, term in enumerate(terms):
            heard = term.filter_back(slopes)
            of_q += term.cause(heard)
            if of_energies:
                energies[k] += heard.T @ q
            if of_corners:
                _add_corners(term, q, slopes, of_weights[k], scales[k])
        slopes = _slopes(of_q, q)
        total += slopes
    corners = torch.cat([t.flatten() for t in of_weights]) if of_weights else grad.new_empty(0)
    return _labels(total, grad), energies, corners, scales


def _add_corners(term: Term, q: Tensor, slopes: Tensor, corners: Tensor, scales: Tensor) -> None:
    """Adds the gradients of corner weights and scales.

    The filter uses a corner's weight twice: to splat Q and to slice it.
    """
    before, after = term.scales
    splatted = q if before is None else q * before
    pulled = slopes if after is None else slopes * after
    sliced = _corner_product(term.cause(slopes), splatted, *term.lattice, False)
    splat = _corner_product(term.message(q), pulled, *term.lattice, True)
    weights = term.lattice.corner_weights
    scales[0] += (weights * splat).sum(1)
    scales[1] += (weights * sliced).sum(1)
    corners += splat if before is None else splat * before
    corners += sliced if after is None else sliced * after


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
