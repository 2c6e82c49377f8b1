"""Registers the derivatives of operators: gradients for reverse mode, tangents for forward mode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ._library import register_autograd_kernel

# torch.library.register_autograd would be the public way. It costs 20 microseconds a call where a
# gradient is asked for and 6 where none is, as long as a small map takes to compute, and it knows
# no forward mode: it drops tangents and says nothing. Hence one autograd.Function an operator, made
# here of torch._C's parts; it serves the dispatcher and whoever calls the operator from Python.

Gradient = Callable[..., Any]
Save = Callable[[Any, tuple[Any, ...], Any], None]
# The tangent of the output, given all arguments and theirs, None for those that have none. Of an
# argument that is a list both are lists.
Tangent = Callable[[Sequence[Any], Sequence[Any]], Tensor]


class _Route(NamedTuple):
    """How the dispatcher's call reached an autograd.Function; its last argument there."""

    keyset: torch._C.DispatchKeySet | None  # None for a call from Python
    lengths: tuple[int | None, ...]  # of arguments that are lists of tensors


def register_derivatives(
    op: torch._ops.OpOverload,
    gradient: Gradient,
    save: Save | None = None,
    tangent: Tangent | None = None,
) -> Callable[..., Any]:
    """Gives an operator its gradient and its tangent, and returns a quicker way to call it.

    ``gradient`` and ``save`` are what ``torch.library.register_autograd`` takes. Where there is no
    ``tangent``, arguments that have one raise. What is returned takes all the operator's arguments,
    in order. It goes through the dispatcher only where a compiler, or something else that listens
    above autograd, may be in between.
    """
    direct, routed = _functions_of(op, gradient, save)
    arguments = op._schema.arguments
    are_lists = [str(argument.type) == "List[Tensor]" for argument in arguments]
    has_lists = any(are_lists)
    places = [place for place, argument in enumerate(arguments) if "Tensor" in str(argument.type)]
    defaults = [argument.default_value for argument in arguments]

    def route(keyset: torch._C.DispatchKeySet | None, args: Sequence[Any]) -> Any:
        lengths = tuple(len(a) if many else None for a, many in zip(args, are_lists, strict=True))
        flat = _flat(args, lengths)
        return routed.apply(*flat, _Route(keyset, lengths))

    def kernel(keyset: torch._C.DispatchKeySet, *args: Any) -> Any:
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
            # The dispatcher leaves out arguments that equal their defaults.
            return route(keyset, [*args, *defaults[len(args) :]])
        return _below_autograd(op, keyset, args)

    def call(*args: Any) -> Any:
        if _something_listens():
            return op(*args)
        if torch.is_grad_enabled():
            if has_lists:
                if torch._C._any_requires_grad(*args):
                    return route(None, args)
            else:  # ten times as quick
                for place in places:
                    tensor = args[place]
                    if tensor is not None and tensor.requires_grad:
                        return direct.apply(*args)
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    _register(op, kernel, tangent)
    return call


def _functions_of(
    op: torch._ops.OpOverload, gradient: Gradient, save: Save | None
) -> tuple[type[torch.autograd.Function], type[torch.autograd.Function]]:
    """What autograd keeps of a call: with plain arguments, and as the dispatcher has them."""

    class Direct(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            output = _below_autograd(op, None, args)
            if save is not None:
                save(ctx, args, output)
            return output

        backward = staticmethod(gradient)

    class Routed(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *flat: Any) -> Any:
            keyset, ctx.lengths = flat[-1]
            args = _grouped(flat, ctx.lengths)
            output = _below_autograd(op, keyset, args)
            if save is not None:
                save(ctx, args, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            needed = ctx.needs_input_grad
            try:
                ctx.needs_input_grad = _grouped(needed, ctx.lengths)
                found = gradient(ctx, *grads)
            finally:
                ctx.needs_input_grad = needed
            found = found if isinstance(found, tuple) else (found,)
            return (*_flat(found, ctx.lengths), None)

    return Direct, Routed


def _below_autograd(
    op: torch._ops.OpOverload, keyset: torch._C.DispatchKeySet | None, args: Sequence[Any]
) -> Any:
    with torch._C._AutoDispatchBelowAutograd():
        if keyset is None:
            return op(*args)
        return op.redispatch(keyset & torch._C._after_autograd_keyset, *args)


def _flat(values: Sequence[Any], lengths: Sequence[int | None]) -> list[Any]:
    """With the members of lists in their place."""
    flat: list[Any] = []
    for value, length in zip(values, lengths, strict=True):
        if length is None:
            flat.append(value)
        else:
            flat += value
    return flat


def _grouped(flat: Sequence[Any], lengths: Sequence[int | None]) -> tuple[Any, ...]:
    """What ``_flat`` made of lists of such lengths, without what comes after."""
    values, at = [], 0
    for length in lengths:
        values.append(flat[at] if length is None else list(flat[at : at + length]))
        at += 1 if length is None else length
    return tuple(values)


def refuse_derivatives(op: torch._ops.OpOverload) -> Callable[..., Any]:
    """Has an operator that cannot be differentiated say so, in either mode.

    Returns a quicker way to call it, as ``register_derivatives`` does, where no argument requires a
    gradient.
    """
    name = op._schema.name

    def kernel(keyset: torch._C.DispatchKeySet, *args: Any) -> Any:
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
            raise NotImplementedError(f"{name} has no gradient")
        return _below_autograd(op, keyset, args)

    def no_gradient(ctx: Any, *grads: Tensor) -> None:
        raise NotImplementedError(f"{name} has no gradient")

    # Of an operator that writes to an argument autograd makes no function.
    if op._schema.is_mutable:
        _register(op, kernel, None)
    else:
        register_derivatives(op, no_gradient)

    def call(*args: Any) -> Any:
        if _something_listens():
            return op(*args)
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    return call


# By names of their own: to look a function up in torch._C takes as long as to call it.
_is_compiling = torch.compiler.is_compiling
_is_autocast_enabled = torch._C._is_any_autocast_enabled
_are_transforms_active = torch._C._are_functorch_transforms_active
_dispatch_modes = torch._C._len_torch_dispatch_stack
_tracing_state = torch._C._get_tracing_state


def _something_listens() -> bool:
    """Whether a compiler, forward mode, autocast, a transform, a mode or a trace looks for the
    operator."""
    return bool(
        _is_compiling()
        or forward_ad._current_level >= 0
        or _is_autocast_enabled()
        or _are_transforms_active()
        or _dispatch_modes()
        or _tracing_state()
    )


def check_no_tangent(name: str, tensor: Tensor) -> None:
    """Refuses a tensor whose tangent would be dropped."""
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None:
        raise NotImplementedError(
            f"{name} has no forward-mode derivative (torch.func.jvp, torch.autograd.forward_ad)"
        )


def multilinear(op: torch._ops.OpOverload, *places: int, added: int | None = None) -> Tangent:
    """The tangent of an operator that is linear in each of the arguments at ``places``.

    ``added`` is the place of a bias [C], which is added to the output [N, C, H, W].
    """

    def tangent(arguments: Sequence[Any], tangents: Sequence[Any]) -> Tensor:
        fixed = list(arguments)
        terms = []
        if added is not None:
            fixed[added] = None
            if tangents[added] is not None:
                terms.append(tangents[added][:, None, None])
        for place in places:
            if tangents[place] is not None:
                terms.append(op(*fixed[:place], tangents[place], *fixed[place + 1 :]))
        # The bias alone has not the output's shape.
        return sum(terms[1:], start=terms[0])  # type: ignore[no-any-return]

    return tangent


def _register(
    op: torch._ops.OpOverload, kernel: Callable[..., Any], tangent: Tangent | None
) -> None:
    def differentiable(keyset: torch._C.DispatchKeySet, *args: Any, **kwargs: Any) -> Any:
        if forward_ad._current_level >= 0:
            # Arguments equal to their defaults are left out.
            defaults = [argument.default_value for argument in op._schema.arguments[len(args) :]]
            primals, tangents = _unpacked([*args, *defaults])
            if any(t is not None for t in tangents):
                if tangent is None:
                    raise NotImplementedError(
                        f"{op._schema.name} has no forward-mode derivative "
                        "(torch.func.jvp, torch.autograd.forward_ad)"
                    )
                # What is saved for the backward keeps its tangent; only this call must not see it.
                with forward_ad._set_fwd_grad_enabled(False):
                    output = kernel(keyset, *args, **kwargs)
                return forward_ad.make_dual(output, tangent(primals, tangents).expand_as(output))
        return kernel(keyset, *args, **kwargs)

    register_autograd_kernel(op, differentiable)


def _unpacked(values: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Primal values and tangents. Of a list of tensors, one of which has a tangent, all have."""
    primals, tangents = [], []
    for value in values:
        primal, tangent = value, None
        if isinstance(value, Tensor):
            primal, tangent = forward_ad.unpack_dual(value)
        elif isinstance(value, (list, tuple)) and any(isinstance(v, Tensor) for v in value):
            primal, several = _unpacked(value)
            if any(t is not None for t in several):
                tangent = [
                    torch.zeros_like(p) if t is None else t
                    for p, t in zip(primal, several, strict=True)
                ]
        primals.append(primal)
        tangents.append(tangent)
    return primals, tangents
