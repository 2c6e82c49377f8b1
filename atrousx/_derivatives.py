"""Registers derivatives of operators: gradients for reverse mode, tangents for forward mode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ._library import register_autograd_kernel

# torch.library.register_autograd is the public API. It costs 20 microseconds per call with a
# gradient and 6 without one, which is as long as a small map takes to compute. It does not support
# forward mode either: it drops tangents silently. Therefore each operator gets an autograd.Function
# here, built on private functions of torch._C. The dispatcher and callers from Python both use it.

Gradient = Callable[..., Any]
Save = Callable[[Any, tuple[Any, ...], Any], None]
# Returns the tangent of the output from all arguments and their tangents (None for none). For an
# argument that is a list, its tangents are a list, too.
Tangent = Callable[[Sequence[Any], Sequence[Any]], Tensor]


class _Route(NamedTuple):
    """How a call reached the autograd.Function ``Routed``; it is passed as the last argument."""

    keyset: torch._C.DispatchKeySet | None  # None for a call from Python
    lengths: tuple[int | None, ...]  # the length of each argument that is a list, else None


def register_derivatives(
    op: torch._ops.OpOverload,
    gradient: Gradient,
    save: Save | None = None,
    tangent: Tangent | None = None,
) -> Callable[..., Any]:
    """Registers gradient and tangent of an operator and returns a faster function to call it.

    ``gradient`` and ``save`` are those of ``torch.library.register_autograd``. Without ``tangent``,
    an argument with a tangent raises NotImplementedError. The returned function takes all arguments
    of the operator in order. It uses the dispatcher only if a compiler or another layer above
    autograd may need to see the call.
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
            # The dispatcher omits trailing arguments that equal their defaults.
            return route(keyset, [*args, *defaults[len(args) :]])
        return _below_autograd(op, keyset, args)

    def call(*args: Any) -> Any:
        if _something_listens():
            return op(*args)
        if torch.is_grad_enabled():
            if has_lists:
                if torch._C._any_requires_grad(*args):
                    return route(None, args)
            else:  # this loop is ten times as fast as _any_requires_grad
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
    """Returns two autograd.Functions: for direct calls, and for calls that have a ``_Route``."""

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
    """Returns the values with every list replaced by its elements."""
    flat: list[Any] = []
    for value, length in zip(values, lengths, strict=True):
        if length is None:
            flat.append(value)
        else:
            flat += value
    return flat


def _grouped(flat: Sequence[Any], lengths: Sequence[int | None]) -> tuple[Any, ...]:
    """Undoes ``_flat`` for the given lengths and ignores further values."""
    values, at = [], 0
    for length in lengths:
        values.append(flat[at] if length is None else list(flat[at : at + length]))
        at += 1 if length is None else length
    return tuple(values)


def refuse_derivatives(op: torch._ops.OpOverload) -> Callable[..., Any]:
    """Makes an operator raise NotImplementedError if it is differentiated, in either mode.

    Returns a faster function to call it, as ``register_derivatives`` does. That function must be
    called only with arguments that require no gradient.
    """
    name = op._schema.name

    def kernel(keyset: torch._C.DispatchKeySet, *args: Any) -> Any:
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
            raise NotImplementedError(f"{name} has no gradient")
        return _below_autograd(op, keyset, args)

    def no_gradient(ctx: Any, *grads: Tensor) -> None:
        raise NotImplementedError(f"{name} has no gradient")

    # autograd.Function does not support operators that write to an argument.
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


# Bound to names here, because a lookup in torch._C takes as long as the call.
_is_compiling = torch.compiler.is_compiling
_is_autocast_enabled = torch._C._is_any_autocast_enabled
_are_transforms_active = torch._C._are_functorch_transforms_active
_dispatch_modes = torch._C._len_torch_dispatch_stack
_tracing_state = torch._C._get_tracing_state


def _something_listens() -> bool:
    """Whether the dispatcher must see the call.

    This is so under a compiler, forward mode, autocast, a torch.func transform, a dispatch mode or
    torch.jit.trace.
    """
    return bool(
        _is_compiling()
        or forward_ad._current_level >= 0
        or _is_autocast_enabled()
        or _are_transforms_active()
        or _dispatch_modes()
        or _tracing_state()
    )


def check_no_tangent(name: str, tensor: Tensor) -> None:
    """Raises NotImplementedError if a tensor has a tangent, which would be dropped."""
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None:
        raise NotImplementedError(
            f"{name} has no forward-mode derivative (torch.func.jvp, torch.autograd.forward_ad)"
        )


def multilinear(op: torch._ops.OpOverload, *places: int, added: int | None = None) -> Tangent:
    """Returns the tangent function of an operator that is linear in each argument at ``places``.

    ``added`` is the index of a bias [C], which is added to the output [N, C, H, W].
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
        # A term of the bias alone has a smaller shape; the caller expands it.
        return sum(terms[1:], start=terms[0])  # type: ignore[no-any-return]

    return tangent


def _register(
    op: torch._ops.OpOverload, kernel: Callable[..., Any], tangent: Tangent | None
) -> None:
    def differentiable(keyset: torch._C.DispatchKeySet, *args: Any, **kwargs: Any) -> Any:
        if forward_ad._current_level >= 0:
            # The dispatcher omits trailing arguments that equal their defaults.
            defaults = [argument.default_value for argument in op._schema.arguments[len(args) :]]
            primals, tangents = _unpacked([*args, *defaults])
            if any(t is not None for t in tangents):
                if tangent is None:
                    raise NotImplementedError(
                        f"{op._schema.name} has no forward-mode derivative "
                        "(torch.func.jvp, torch.autograd.forward_ad)"
                    )
                # Tensors that are saved for the backward keep their tangents, so they are not
                # removed. Forward mode is off during this call only.
                with forward_ad._set_fwd_grad_enabled(False):
                    output = kernel(keyset, *args, **kwargs)
                return forward_ad.make_dual(output, tangent(primals, tangents).expand_as(output))
        return kernel(keyset, *args, **kwargs)

    register_autograd_kernel(op, differentiable)


def _unpacked(values: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Returns primal values and tangents.

    If one tensor of a list has a tangent, the others get zeros.
    """
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
