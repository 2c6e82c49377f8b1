"""Defines a case: one operator on one geometry, in several dtypes and layouts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# "tf32" is float32 in memory; a GPU may round it to TF32 before multiplying.
DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "tf32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
PLAIN = ("float64", "float32", "float16", "bfloat16")
ALL = tuple(DTYPES)
WIDE = ("float64", "float32")
MAPS = ("contiguous", "channels_last", "strided")
ROWS = ("contiguous",)

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Case:
    """One operator (or a function built on several) on one geometry.

    ``make`` returns the inputs in float64 on the CPU. ``run`` computes by atrousx, with TF32 if its
    second argument is true. ``twin`` computes the same by plain PyTorch. Their results have the
    same shapes. Floating results are compared by the rule of ``accuracy.py``, integers exactly.
    ``length`` is the number of terms that an output sums. ``judged``: the twin is an operator of
    PyTorch, and its error in the same dtype is the measure. Otherwise the twin was written for this
    purpose, and only its float64 results are used.
    """

    operator: str
    pass_name: str
    name: str
    make: Callable[[], Tensors]
    run: Callable[[Tensors, bool], Tensors]
    twin: Callable[[Tensors], Tensors]
    length: int
    dtypes: Sequence[str] = PLAIN
    layouts: Sequence[str] = ROWS
    judged: bool = True
    cpu_only: bool = False  # the case concerns the CPU only and is not run on other devices


def gradients_of(
    function: Callable[[Tensors], Tensors], inputs: Tensors, grad: Tensor, of: Sequence[int]
) -> Tensors:
    """Returns the gradients of <function(inputs)[0], grad> for the inputs with indices ``of``."""
    leaves = [t.detach().requires_grad_(i in of) for i, t in enumerate(inputs)]
    output = function(tuple(leaves))[0]
    return torch.autograd.grad(output, [leaves[i] for i in of], grad)


def rounded(tensor: Tensor, dtype: str) -> Tensor:
    """Rounds ``tensor`` to values that ``dtype`` represents exactly; the result is float64.

    There are two sets of values: one for float64, float32 and TF32, and one for both half types.
    So several dtypes share a float64 reference.
    """
    if not tensor.is_floating_point():
        return tensor
    if dtype in ("float16", "bfloat16"):
        return tensor.bfloat16().half().double()
    return tensor.float().double()


def placed(tensor: Tensor, dtype: str, layout: str, device: torch.device) -> Tensor:
    """Moves ``tensor`` to a device; converts floating ones to ``dtype``, maps to ``layout``."""
    if not tensor.is_floating_point():
        return tensor.to(device)
    moved = tensor.to(DTYPES[dtype]).to(device)
    if tensor.dim() != 4 or layout == "contiguous":
        return moved
    if layout == "channels_last":
        return moved.contiguous(memory_format=torch.channels_last)
    gapped = moved.new_empty(*moved.shape[:-1], 2 * moved.shape[-1])[..., ::2]
    return gapped.copy_(moved)
