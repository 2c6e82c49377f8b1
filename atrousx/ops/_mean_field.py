"""Mean-field inference in a fully connected CRF, over points: what DenseCRF and the compatibility
layers share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ._permutohedral_lattice import Lattice
from .permutohedral_filter import Scales, filter_rows

_op = torch.ops.atrousx._mean_field.default


class Term(NamedTuple):
    """One Gaussian kernel of the energy."""

    lattice: Lattice
    scales: Scales  # its normaliser
    weight: float | Tensor
    compatibility: Tensor | None  # [L, L], row: the label that pays; None is Potts'


# What CUDA's operator takes; energies of more run by parts.
_MAX_CUDA_TERMS = 8


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
    logits: Tensor, terms: Sequence[Term], iterations: int, recompute: bool = False
) -> Tensor:
    """Q <- softmax(log P - messages), ``iterations`` times from P = softmax(logits), [N, L, P].

    With ``recompute`` backward computes each iteration again from its Q, the only thing kept of it.
    """
    differentiated = torch.is_grad_enabled() and _any_needs_gradient(logits, terms)
    on_cpu = logits.device.type == "cpu"
    too_many = not on_cpu and len(terms) > _MAX_CUDA_TERMS
    if differentiated or torch.compiler.is_compiling() or too_many:
        return _by_parts(logits, terms, iterations, recompute)
    if not on_cpu:
        terms = [_without_tensor_weight(term, logits.shape[1]) for term in terms]
    weights = [float(term.weight) for term in terms]
    result: Tensor = _op(logits, _flattened(terms, logits), weights, iterations)
    return result


def _without_tensor_weight(term: Term, labels: int) -> Term:
    """The term with its weight in the compatibility: to read it from a GPU would wait for that."""
    if not isinstance(term.weight, Tensor):
        return term
    if term.compatibility is None:
        # Potts' costs are a diagonal's, up to the constant that softmax drops.
        costs = -term.weight.expand(labels)
    else:
        costs = term.weight * term.compatibility
    return term._replace(weight=1.0, compatibility=costs)


class _Softmax(torch.autograd.Function):
    """Softmax over the last dimension. PyTorch's own rounds its gradient as the threads' shares
    fall; this one's bits are the same with any number of threads."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        q = x.softmax(-1)
        ctx.save_for_backward(q)
        return q

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (q,) = ctx.saved_tensors
        weighted: Tensor = grad * q
        return weighted.addcmul(q, weighted.sum(-1, keepdim=True), value=-1)


def _by_parts(
    logits: Tensor, terms: Sequence[Term], iterations: int, recompute: bool = False
) -> Tensor:
    rows = logits.movedim(1, -1)
    log_p = rows.reshape(-1, logits.shape[1]).log_softmax(-1)

    def step(q: Tensor) -> Tensor:
        log_q = log_p
        for term in terms:
            log_q = less_message(log_q, q, term)
        probabilities: Tensor = _Softmax.apply(log_q)  # type: ignore[no-untyped-call]
        return probabilities

    q = log_p.exp()
    for _ in range(iterations):
        q = checkpoint(step, q, use_reentrant=False) if recompute else step(q)
    return q.reshape(rows.shape).movedim(-1, 1)


def _any_needs_gradient(logits: Tensor, terms: Sequence[Term]) -> bool:
    tensors = [logits]
    for term in terms:
        given = (term.lattice.corner_weights, *term.scales, term.weight, term.compatibility)
        tensors += [t for t in given if isinstance(t, Tensor)]
    return any(t.requires_grad for t in tensors)


def _flattened(terms: Sequence[Term], like: Tensor) -> list[Tensor]:
    """What ``_mean_field`` takes: nine tensors a term."""
    none = like.new_empty(0)
    return [
        none if t is None else t.contiguous()
        for term in terms
        for t in (*term.lattice, *term.scales, term.compatibility)
    ]


@torch.library.register_fake("atrousx::_mean_field")
def _(logits: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)
