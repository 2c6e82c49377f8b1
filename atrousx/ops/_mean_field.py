"""Mean-field inference in a fully connected CRF, over points: what DenseCRF and the compatibility
layers share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ._permutohedral_lattice import Lattice
from .permutohedral_filter import Scales, filter_rows


class Term(NamedTuple):
    """One Gaussian kernel of the energy."""

    lattice: Lattice
    scales: Scales  # its normaliser
    weight: float | Tensor
    compatibility: Tensor | None  # [L, L], row: the label that pays; None is Potts'


def less_message(log_q: Tensor, q: Tensor, term: Term) -> Tensor:
    """``log_q`` less what each label costs given the others' probabilities ``q``, [P, L] all."""
    filtered = filter_rows(q, term.lattice, term.scales)
    if term.compatibility is not None:
        return log_q - term.weight * (filtered @ term.compatibility.T)
    # Potts: labels that differ cost the weight. Probabilities sum to one over the labels, so what
    # they cost is a constant less what equal ones cost: softmax drops the constant.
    if isinstance(term.weight, Tensor):
        return log_q + term.weight * filtered
    return log_q.add(filtered, alpha=term.weight)


def mean_field(
    log_p: Tensor, terms: Sequence[Term], iterations: int, recompute: bool = False
) -> Tensor:
    """Q <- softmax(log P - messages), ``iterations`` times from P: [P, L] to [P, L].

    With ``recompute`` backward computes each iteration again from its Q, the only thing kept of it.
    """

    def step(q: Tensor) -> Tensor:
        log_q = log_p
        for term in terms:
            log_q = less_message(log_q, q, term)
        return log_q.softmax(-1)

    q = log_p.softmax(-1)
    for _ in range(iterations):
        q = checkpoint(step, q, use_reentrant=False) if recompute else step(q)
    return q
