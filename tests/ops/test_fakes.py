"""Every fake kernel predicts its kernel's result: sizes, strides, dtype and device."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from tests.ops.operator_cases import CPU_ONLY, all_cases

# Some sizes of these results depend on values. The fake kernel may not know them.
DYNAMIC = {
    "_atrous_conv2d_pack_weight",
    "_permutohedral_assemble",
    "_permutohedral_build",
    "_mean_field_backward",
    "_mean_field_states",
}


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for item in value for t in tensors(item)] if isinstance(value, (list, tuple)) else []


def known(numbers: Any) -> list[int | None]:
    """Returns the numbers that a fake knows, with None for those that depend on values."""
    return [n if isinstance(n, int) else None for n in numbers]


def differences(real: Tensor, fake: Tensor) -> list[str]:
    found = []
    if (real.dtype, real.device) != (fake.dtype, fake.device):
        found.append(f"{real.dtype} on {real.device}, the fake {fake.dtype} on {fake.device}")
    sizes, strides = known(fake.shape), known(fake.stride())
    if real.dim() != fake.dim():
        return [*found, f"{tuple(real.shape)}, the fake {sizes}"]
    if any(f not in (None, r) for r, f in zip(real.shape, sizes, strict=True)):
        found.append(f"{tuple(real.shape)}, the fake {sizes}")
    # Strides do not matter in an empty tensor, nor for a dimension of one element.
    matters = [size > 1 for size in real.shape] if real.numel() > 0 else [False] * real.dim()
    for real_stride, stride, counts in zip(real.stride(), strides, matters, strict=True):
        if counts and stride not in (None, real_stride):
            found.append(f"strides {real.stride()}, the fake {strides}")
    return found


@pytest.mark.parametrize("case", all_cases(), ids=str)
def test_fake_says_what_the_kernel_returns(device, case):
    if case.operator in CPU_ONLY:
        pytest.skip("tells about numbers, which a fake tensor does not have")
    op = getattr(torch.ops.atrousx, case.operator).default
    for dtype in case.dtypes:
        arguments = case.arguments(device, dtype)
        with FakeTensorMode(shape_env=ShapeEnv()) as mode:
            to_fake = functools.partial(mode.from_tensor, static_shapes=True)
            fakes = torch.utils._pytree.tree_map_only(Tensor, to_fake, arguments)
            fake_results = tensors(op(*fakes))
        results = tensors(op(*arguments))
        assert len(results) == len(fake_results)
        for index, (real, fake) in enumerate(zip(results, fake_results, strict=True)):
            assert not differences(real, fake), f"result {index} in {dtype}"
            dynamic = None in known(fake.shape)
            assert not dynamic or case.operator in DYNAMIC, "a size that is known is not said"


def test_differences_are_seen():
    with FakeTensorMode():
        fake = torch.empty(2, 3, 4)
    assert not differences(torch.empty(2, 3, 4), fake)
    for real in (
        torch.empty(2, 3, 5),
        torch.empty(2, 3),
        torch.empty(2, 4, 3).transpose(1, 2),
        torch.empty(2, 3, 4, dtype=torch.float64),
    ):
        assert differences(real, fake)
