"""Registers the derivatives of operators: gradients for reverse mode, tangents for forward mode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._library.autograd import Info, make_autograd_impl
from torch.autograd import forward_ad

from ._library import register_autograd_kernel

Save = Callable[[Any, tuple[Any, ...], Any], None]
# The tangent of the output, given all arguments and theirs, None for those that have none. Of an
# argument that is a list both are lists.
Tangent = Callable[[Sequence[Any], Sequence[Any]], Tensor]


def register_derivatives(
    op: torch._ops.OpOverload,
    gradient: Callable[..., Any],
    save: Save | None = None,
    tangent: Tangent | None = None,
) -> None:
    """Gives an operator its gradient and its tangent.

    ``gradient`` and ``save`` are what ``torch.library.register_autograd`` takes, which knows no
    forward mode: it drops tangents and says nothing. Where there is no ``tangent``, arguments that
    have one raise.
    """
    _register(op, make_autograd_impl(op, Info(gradient, save)), tangent)


def register_gradient(
    op: torch._ops.OpOverload,
    gradient: Callable[..., Any],
    save: Save | None = None,
    tangent: Tangent | None = None,
) -> Callable[..., Any]:
    """Gives an operator the gradient of its first argument, and returns a quicker way to call it.

    The arguments are those of ``register_derivatives``. Through the dispatcher a gradient costs 6
    microseconds a call where it is not asked for and 20 where it is, which small maps do not take
    to compute. What is returned takes all the operator's arguments, in order, and goes there only
    where a compiler, or something else that listens above autograd, may be in between.
    """
    register_derivatives(op, gradient, save, tangent)

    class Direct(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                output = op(*args)
            if save is not None:
                save(ctx, args, output)
            return output

        backward = staticmethod(gradient)

    def call(first: Tensor, *args: Any) -> Any:
        if _something_listens():
            return op(first, *args)
        if first.requires_grad and torch.is_grad_enabled():
            return Direct.apply(first, *args)  # type: ignore[no-untyped-call]
        with torch._C._AutoDispatchBelowAutograd():
            return op(first, *args)

    return call


def refuse_derivatives(op: torch._ops.OpOverload) -> Callable[..., Any]:
    """Has an operator that cannot be differentiated say so, in either mode.

    Returns a quicker way to call it where no argument requires a gradient, as does
    ``register_gradient``.
    """
    name = op._schema.name

    def no_gradient(ctx: Any, *grads: Tensor) -> None:
        raise NotImplementedError(f"{name} has no gradient")

    def kernel(keyset: torch._C.DispatchKeySet, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
            raise NotImplementedError(f"{name} has no gradient")
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keyset & torch._C._after_autograd_keyset, *args, **kwargs)

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


def _something_listens() -> bool:
    """Whether a compiler, forward mode, autocast, a transform or a mode looks for the operator."""
    return bool(
        torch.compiler.is_compiling()
        or forward_ad._current_level >= 0
        or torch._C._is_any_autocast_enabled()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
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
