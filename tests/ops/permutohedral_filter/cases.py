"""Shared cases of the tests of the permutohedral filter."""

from __future__ import annotations

import torch

ops = torch.ops.atrousx
apply_op = ops._permutohedral_apply.default


def random_case(channels=3, dims=2, size=(4, 5), batch=2, dtype=torch.float64, device="cpu"):
    values = torch.randn(batch, channels, *size, dtype=dtype, device=device)
    features = 2 * torch.randn(batch, dims, *size, dtype=dtype, device=device)
    return values, features
