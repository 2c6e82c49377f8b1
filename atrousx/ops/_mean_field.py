"""Mean-field inference in a fully connected CRF over points.

DenseCRF and the compatibility layers share it.
"""

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

# The largest number of terms of the CUDA operator; more terms are computed by `_by_parts`.
_MAX_CUDA_TERMS = 8


def mean_field(
    logits: Tensor, terms: Sequence[Term], iterations: int, recompute: bool = False
) -> Tensor:
    """Returns Q [N, L, P] after ``iterations`` steps Q <- softmax(log P - messages).

    It starts from Q = P = softmax(logits). For the gradient only Q of each iteration is kept. In
    traced code all intermediate results are kept, unless ``recompute`` is true: then the backward
    computes them again.
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
    """Returns the terms from the joined results of ``_parts``."""
    terms = []
    for at in range(0, len(parts), _TERM_PARTS):
        *lattice, before, after, weight, compatibility = parts[at : at + _TERM_PARTS]
        terms.append(Term(Lattice(*lattice), (before, after), weight, compatibility))
    return terms


class _MeanField(torch.autograd.Function):
    """Mean-field inference with gradients of the logits and of all parts of the terms."""

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
        if torch.is_grad_enabled():  # the gradient may be differentiated again
            return None, *_gradient_by_parts(grad, ctx.iterations, [logits, *parts], needed)
        return None, *_gradient(grad, states, _terms(parts), needed)


def _gradient(
    grad: Tensor, states: Tensor, terms: Sequence[Term], needed: Sequence[bool]
) -> list[Tensor | None]:
    """Computes the gradients by the operator, from whose sums the gradients of all parts follow."""
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
    """Returns the gradients of weight and compatibility.

    With Potts' costs only equal labels count (see ``Term.message``), which is the diagonal.
    """
    if term.compatibility is None:
        return energies.diagonal().sum(), None
    return -(term.compatibility * energies).sum(), -term.weight * energies


def _gradient_by_parts(
    grad: Tensor, iterations: int, inputs: Sequence[Any], needed: Sequence[bool]
) -> list[Tensor | None]:
    """Computes gradients that can be differentiated again.

    An input, such as a normaliser, may have been computed from another input. Views of the inputs
    keep the gradients of the two separate.
    """
    views = [t.view_as(t) if isinstance(t, Tensor) else t for t in inputs]
    q = _by_parts(views[0], _terms(views[1:]), iterations)
    wanted = [view for view, asked in zip(views, needed, strict=True) if asked]
    found = iter(torch.autograd.grad(q, wanted, grad, create_graph=True, allow_unused=True))
    return [next(found) if asked else None for asked in needed]


def _without_tensor_weight(term: Term, labels: int) -> Term:
    """Moves a tensor weight into the compatibility: reading it would wait for the GPU."""
    if not isinstance(term.weight, Tensor):
        return term
    if term.compatibility is None:
        # Potts' costs equal a negative diagonal up to a constant, which softmax ignores.
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
    """Returns the arguments of the operators: nine tensors and a weight for each term."""
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
