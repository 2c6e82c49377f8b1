"""Mean-field inference in a fully connected CRF, over points: what DenseCRF and the compatibility
layers share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from .._derivatives import refuse_derivatives
from ..backend.self_check import ensure_right
from ._kernels import register_fake
from ._mean_field_rows import Term, less_message, less_messages
from ._permutohedral_lattice import Lattice

_op = torch.ops.atrousx._mean_field.default
_states = torch.ops.atrousx._mean_field_states.default
_backward = torch.ops.atrousx._mean_field_backward.default


__all__ = ["Term", "less_message", "mean_field"]

# What CUDA's operator takes; energies of more run by parts.
_MAX_CUDA_TERMS = 8


def mean_field(
    logits: Tensor, terms: Sequence[Term], iterations: int, recompute: bool = False
) -> Tensor:
    """Q <- softmax(log P - messages), ``iterations`` times from P = softmax(logits), [N, L, P].

    For the gradient nothing but its Q is kept of an iteration; of one that a compiler traces all is
    kept, unless ``recompute`` has it computed again.
    """
    ensure_right("mean_field", logits)
    too_many = logits.device.type != "cpu" and len(terms) > _MAX_CUDA_TERMS
    if torch.compiler.is_compiling() or forward_ad._current_level >= 0 or too_many:
        return _by_parts(logits, terms, iterations, recompute)
    if torch.is_grad_enabled() and _any_needs_gradient(logits, terms):
        inputs = [part for term in terms for part in _parts(term)]
        q: Tensor = _MeanField.apply(iterations, logits, *inputs)  # type: ignore[no-untyped-call]
        return q
    result: Tensor = _op(logits, *_arguments(terms, logits), iterations)
    return result


def _parts(term: Term) -> tuple[Tensor | float | None, ...]:
    return (*term.lattice, *term.scales, term.weight, term.compatibility)


_LATTICE_PARTS = len(Lattice._fields)
_TERM_PARTS = _LATTICE_PARTS + 4


def _terms(parts: Sequence[Any]) -> list[Term]:
    """The terms whose ``_parts`` these are."""
    terms = []
    for at in range(0, len(parts), _TERM_PARTS):
        *lattice, before, after, weight, compatibility = parts[at : at + _TERM_PARTS]
        terms.append(Term(Lattice(*lattice), (before, after), weight, compatibility))
    return terms


class _MeanField(torch.autograd.Function):
    """The operators' gradient with respect to the logits and to whatever a term is made of."""

    @staticmethod
    def forward(ctx: Any, iterations: int, logits: Tensor, *parts: Any) -> Tensor:
        tensors, weights = _arguments(_terms(parts), logits)
        q: Tensor
        q, states = _states(logits, tensors, weights, iterations)
        ctx.iterations = iterations
        ctx.parts = [None if isinstance(part, Tensor) else part for part in parts]
        ctx.places = [i for i, part in enumerate(parts) if isinstance(part, Tensor)]
        ctx.save_for_backward(states, logits, *(parts[i] for i in ctx.places))
        return q

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        states, logits, *tensors = ctx.saved_tensors
        parts = list(ctx.parts)
        for place, tensor in zip(ctx.places, tensors, strict=True):
            parts[place] = tensor
        needed = ctx.needs_input_grad[1:]
        if torch.is_grad_enabled():  # a gradient that is to be differentiated
            return None, *_gradient_by_parts(grad, ctx.iterations, [logits, *parts], needed)
        return None, *_gradient(grad, states, _terms(parts), needed)


def _gradient(
    grad: Tensor, states: Tensor, terms: Sequence[Term], needed: Sequence[bool]
) -> list[Tensor | None]:
    """By the operator, which gives sums that the gradients of the terms' parts are made of."""
    per_term = [
        needed[at : at + _TERM_PARTS] for at in range(1, 1 + _TERM_PARTS * len(terms), _TERM_PARTS)
    ]
    of_energies = any(wanted[-1] or wanted[-2] for wanted in per_term)
    of_corners = any(any(wanted[:-2]) for wanted in per_term)
    tensors, weights = _arguments(terms, grad)
    of_logits, energies, corners, scales = _backward(
        grad, states, tensors, weights, of_energies, of_corners
    )
    gradients: list[Tensor | None] = [of_logits if needed[0] else None]
    start = 0
    for k, (term, wanted) in enumerate(zip(terms, per_term, strict=True)):
        found: list[Tensor | None] = [None] * _TERM_PARTS
        if of_corners:
            of_weights = term.lattice.corner_weights
            found[0] = corners[start : start + of_weights.numel()].view_as(of_weights)
            start += of_weights.numel()
            for i, scale in enumerate(term.scales):
                found[_LATTICE_PARTS + i] = None if scale is None else scales[k, i].view_as(scale)
        if of_energies:
            found[-2:] = _parameter_gradients(energies[k], term)
        gradients += [value if asked else None for value, asked in zip(found, wanted, strict=True)]
    return gradients


def _parameter_gradients(energies: Tensor, term: Term) -> tuple[Tensor, Tensor | None]:
    """Of the weight and of the compatibility. Potts' gain is what equal labels have, see above."""
    if term.compatibility is None:
        return energies.diagonal().sum(), None
    return -(term.compatibility * energies).sum(), -term.weight * energies


def _gradient_by_parts(
    grad: Tensor, iterations: int, inputs: Sequence[Any], needed: Sequence[bool]
) -> list[Tensor | None]:
    """With a graph of its own. Views of the inputs keep apart what one of them, as a normaliser,
    owes to another."""
    views = [t.view_as(t) if isinstance(t, Tensor) else t for t in inputs]
    q = _by_parts(views[0], _terms(views[1:]), iterations)
    wanted = [view for view, asked in zip(views, needed, strict=True) if asked]
    found = iter(torch.autograd.grad(q, wanted, grad, create_graph=True, allow_unused=True))
    return [next(found) if asked else None for asked in needed]


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


def _by_parts(
    logits: Tensor, terms: Sequence[Term], iterations: int, recompute: bool = False
) -> Tensor:
    rows = logits.movedim(1, -1)
    log_p = rows.reshape(-1, logits.shape[1]).log_softmax(-1)

    def step(q: Tensor) -> Tensor:
        return less_messages(log_p, q, terms).softmax(-1)

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


def _arguments(terms: Sequence[Term], like: Tensor) -> tuple[list[Tensor], list[float]]:
    """What the operators take: nine tensors a term, and its weight."""
    if like.device.type != "cpu":
        terms = [_without_tensor_weight(term, like.shape[1]) for term in terms]
    none = like.new_empty(0)
    tensors = [
        none if t is None else t.detach().contiguous()
        for term in terms
        for t in (*term.lattice, *term.scales, term.compatibility)
    ]
    return tensors, [_number(term.weight) for term in terms]


def _number(weight: float | Tensor) -> float:
    return float(weight.detach()) if isinstance(weight, Tensor) else weight


for _operator in (_op, _states, _backward):
    refuse_derivatives(_operator)


@register_fake("_mean_field")
def _(logits: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)
