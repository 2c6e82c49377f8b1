"""Mean-field inference on CUDA with invalid lattices: results are NaN, and no other memory is read.

The CPU raises an error instead: see tests/ops/permutohedral_filter/test_foreign_lattices.py.
"""

from __future__ import annotations

import pytest
import torch

from atrousx.ops._permutohedral_lattice import build_lattice
from tests.emulator.bad_indices import BAD, INDICES, changed
from tests.emulator.device import NAME

pytestmark = pytest.mark.emulated


def infer(logits, lattice, weight, scale=None):
    none = torch.empty(0, dtype=logits.dtype, device=NAME)
    scale = none if scale is None else scale
    return torch.ops.atrousx._mean_field(
        logits, [*lattice, scale, scale, none], [weight], iterations=1
    )


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize(("labels", "dtype"), [(3, torch.float64), (21, torch.float32)])
def test_what_a_bad_index_points_to_is_nan(emulated_device, labels, dtype, bad, scaled):
    logits = torch.randn(1, labels, 20, dtype=dtype, device=NAME)
    lattice = build_lattice(2 * torch.randn(1, 2, 20, dtype=dtype).to(NAME))
    scale = torch.ones(20, 1, dtype=dtype, device=NAME) if scaled else None
    good = infer(logits, lattice, 0.3, scale)
    for name in INDICES:
        result = infer(logits, changed(lattice, name, 4, bad), 0.3, scale)
        if name == "neighbours":  # a bad neighbour counts as no neighbour
            assert result.isfinite().all()
        else:
            assert result.isnan().any()
        if name == "corner_vertices":  # only point 1 uses it
            others = torch.arange(20, device=NAME) != 1
            assert torch.equal(result[..., others], good[..., others])


def test_a_long_run_that_is_none_is_nan(emulated_device):
    logits = torch.randn(1, 3, 500, device=NAME)
    lattice = build_lattice(torch.full((1, 2, 500), 0.1, device=NAME))
    assert lattice.starts.diff().max() > 256
    last = lattice.starts.numel() - 1
    assert infer(logits, changed(lattice, "starts", last, 10**6), 0.01).isnan().all()
    assert infer(logits, changed(lattice, "entry_points", 300, 10**6), 0.01).isnan().all()
