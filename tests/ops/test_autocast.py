"""Under autocast every operator returns the dtype of its counterpart in PyTorch."""

import pytest
import torch
from torch.nn import functional as F

from atrousx import ops

WEIGHT = (4, 3, 3, 3)
RATES = [1, 2]


def _resized(x, **options):
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


# Each pair computes the same: the operator, and PyTorch's functions.
PAIRS = {
    "atrous_conv2d": (
        lambda x, w: ops.atrous_conv2d(x, w, dilation=2),
        lambda x, w: F.conv2d(x, w, dilation=2),
    ),
    "multi_rate_conv2d": (
        lambda x, w: ops.multi_rate_conv2d(x, [w, w], dilations=RATES, reduce="sum"),
        lambda x, w: sum(F.conv2d(x, w, padding=rate, dilation=rate) for rate in RATES),
    ),
    "upsample_bilinear2d": (
        lambda x, w: ops.upsample_bilinear2d(x, (18, 18)),
        lambda x, w: _resized(x),
    ),
    "upsample_argmax": (
        lambda x, w: ops.upsample_argmax(x, (18, 18)),
        lambda x, w: _resized(x).argmax(1),
    ),
    "upsample_cross_entropy": (
        lambda x, w: ops.upsample_cross_entropy(x, labels(x)),
        lambda x, w: F.cross_entropy(_resized(x), labels(x)),
    ),
    "upsample_cross_entropy, each pixel": (
        lambda x, w: ops.upsample_cross_entropy(x, labels(x), reduction="none"),
        lambda x, w: F.cross_entropy(_resized(x), labels(x), reduction="none"),
    ),
}
# What PyTorch returns on CUDA, by the lists in ATen/autocast_mode.h.
ON_CUDA = dict.fromkeys(PAIRS, torch.float32) | {
    "atrous_conv2d": torch.bfloat16,
    "multi_rate_conv2d": torch.bfloat16,
    "upsample_argmax": torch.int64,
}


def labels(x):
    return torch.zeros(x.shape[0], 18, 18, dtype=torch.int64, device=x.device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", PAIRS)
def test_the_dtype_is_that_of_pytorch(name, dtype, device):
    operator, reference = PAIRS[name]
    x, w = torch.rand(1, 3, 9, 9, dtype=dtype), torch.rand(WEIGHT, dtype=dtype)
    with torch.autocast(device.type, torch.bfloat16):
        found = operator(x.to(device), w.to(device))
    if device.type in ("cpu", "cuda"):
        with torch.autocast(device.type, torch.bfloat16):
            expected = reference(x.to(device), w.to(device))
        assert found.dtype == expected.dtype
    else:
        # PyTorch has no autocast rules for the device in host memory, which runs CUDA's kernels.
        assert found.dtype == ON_CUDA[name]


def test_every_operator_with_a_counterpart_is_compared():
    # The lattice's operators and upsample_softmax_add_ have no counterpart in PyTorch.
    without = {"permutohedral_filter", "PermutohedralLattice", "upsample_softmax_add_"}
    without.add("live_fraction")  # a function of sizes
    compared = {name.partition(",")[0] for name in PAIRS}
    assert compared | without >= set(ops.__all__)
