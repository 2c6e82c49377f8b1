"""What a case is: one operator on one geometry, in whichever dtypes and layouts it takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# "tf32" is float32 in memory, which a GPU may round to TF32 before it multiplies.
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

    ``make`` gives the inputs in float64 on the CPU. ``run`` computes by atrousx, with TF32 where
    its second argument says so, and ``twin`` the same by plain PyTorch; their results have the same
    shapes, floating ones compared by the rule of ``accuracy.py``, integers exactly. ``length`` is
    how many terms an output sums. ``judged``: the twin is an operator of PyTorch's, so that its
    error in the same dtype is the measure; else it is put together for this purpose, and only its
    float64 counts.
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
    cpu_only: bool = False  # it tells about the CPU, whatever devices there are


def gradients_of(
    function: Callable[[Tensors], Tensors], inputs: Tensors, grad: Tensor, of: Sequence[int]
) -> Tensors:
    """The gradients of <function(inputs)[0], grad> with respect to the inputs that ``of`` lists."""
    leaves = [t.detach().requires_grad_(i in of) for i, t in enumerate(inputs)]
    output = function(tuple(leaves))[0]
    return torch.autograd.grad(output, [leaves[i] for i in of], grad)


def rounded(tensor: Tensor, dtype: str) -> Tensor:
    """``tensor`` in float64 with values that ``dtype`` holds exactly.

    There are two sets of values, one for float64, float32 and TF32, one for both half types, so
    that a reference in float64 serves several dtypes.
    """
    if not tensor.is_floating_point():
        return tensor
    if dtype in ("float16", "bfloat16"):
        return tensor.bfloat16().half().double()
    return tensor.float().double()


def placed(tensor: Tensor, dtype: str, layout: str, device: torch.device) -> Tensor:
    """``tensor`` on a device, a floating one in ``dtype``, a map [N, C, H, W] of it in a layout."""
    if not tensor.is_floating_point():
        return tensor.to(device)
    moved = tensor.to(DTYPES[dtype]).to(device)
    if tensor.dim() != 4 or layout == "contiguous":
        return moved
    if layout == "channels_last":
        return moved.contiguous(memory_format=torch.channels_last)
    gapped = moved.new_empty(*moved.shape[:-1], 2 * moved.shape[-1])[..., ::2]
    return gapped.copy_(moved)
