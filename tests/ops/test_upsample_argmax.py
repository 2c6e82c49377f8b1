"""ops.upsample_argmax: literal cases, reference, ties, NaN, contract, rejections."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from atrousx.ops import upsample_argmax
from tests.ops.common import (
    FLOATING,
    FORMATS,
    assert_same_bits_with_any_threads,
    strided_views,
    to_float64,
)
from tests.reference import upsample_bilinear2d as reference

operator = torch.ops.atrousx._upsample_argmax.default
SIZES = [
    ((2, 3), (5, 7)),
    ((7, 5), (3, 2)),
    ((1, 1), (4, 3)),
    ((9, 9), (65, 133)),
    ((3, 2), (3, 400)),
]


def smooth_logits(channels, size, **options):
    """Returns logits with regions, like a network's: most cells agree on their label."""
    coarse = torch.randn(2, channels, 3, 3)
    return F.interpolate(coarse, size, mode="bicubic", align_corners=True).to(**options)


def test_boundary_by_hand(device):
    logits = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]], device=device)
    # The classes are equal in the middle, where one of the five pixels lies. The first class wins
    # it.
    expected = torch.tensor([[[0, 0, 0, 1, 1]]], device=device)
    assert torch.equal(upsample_argmax(logits, (1, 5)), expected)


def test_probability_by_hand(device):
    logits = torch.tensor([[[[0.0]], [[math.log(3.0)]]]], device=device)
    labels, probability = upsample_argmax(logits, (2, 2), return_probability=True)
    assert torch.equal(labels, torch.ones(1, 2, 2, dtype=torch.int64, device=device))
    torch.testing.assert_close(probability, torch.full((1, 2, 2), 0.75, device=device))


def test_nan_wins_as_in_torch(device):
    logits = torch.randn(1, 4, 3, 3, device=device)
    # It is in a corner, so that no output reads it with weight 0, which makes NaN in PyTorch.
    logits[0, 2, 0, 0] = float("nan")
    expected = F.interpolate(logits, (9, 9), mode="bilinear").argmax(1)
    assert torch.equal(upsample_argmax(logits, (9, 9)), expected)


def test_first_of_equal_classes_wins(device):
    logits = torch.randn(1, 1, 4, 4, device=device).expand(1, 3, 4, 4)
    assert not upsample_argmax(logits, (17, 9)).any()


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("kind", ["random", "smooth"])
@pytest.mark.parametrize(("small", "large"), SIZES)
def test_against_oracle(device, small, large, kind, align_corners, memory_format, dtype):
    logits = torch.randn(2, 6, *small) if kind == "random" else smooth_logits(6, small)
    logits = logits.to(device, dtype).to(memory_format=memory_format)
    labels, probability = upsample_argmax(
        logits, large, align_corners=align_corners, return_probability=True
    )
    only_labels = upsample_argmax(logits, large, align_corners=align_corners, dtype=torch.uint8)
    assert torch.equal(only_labels.long(), labels)

    values = reference.forward(to_float64(logits), large, align_corners)
    chosen = np.take_along_axis(values, labels.cpu().numpy()[:, None], 1)[:, 0]
    # The winner is the greatest value up to rounding, in the dtype that logits are computed in.
    computed = torch.float64 if dtype == torch.float64 else torch.float32
    rounding = 16 * torch.finfo(computed).eps * np.abs(values).max()
    assert (values.max(1) - chosen <= rounding).all()
    exact = 1 / np.exp(values - values.max(1, keepdims=True)).sum(1)
    np.testing.assert_allclose(to_float64(probability), exact, rtol=64 * torch.finfo(computed).eps)


@pytest.mark.parametrize("kind", ["random", "smooth"])
def test_differs_from_two_steps_only_within_rounding(device, kind):
    size = (33, 65)
    logits = torch.randn(2, 21, *size) if kind == "random" else smooth_logits(21, size)
    logits = logits.to(device)
    upsampled = F.interpolate(logits, (257, 513), mode="bilinear")
    different = upsample_argmax(logits, (257, 513)) != upsampled.argmax(1)
    greatest = upsampled.topk(2, 1).values
    assert (greatest[:, 0] - greatest[:, 1])[different].le(2e-6 * greatest.abs().max()).all()
    assert different.float().mean() < 1e-4


def test_any_strides(device):
    logits = torch.randn(2, 3, 4, 5, device=device)
    expected = upsample_argmax(logits, (7, 9))
    for view in strided_views(logits):
        assert torch.equal(upsample_argmax(view, (7, 9)), expected)


def test_empty_batch(device):
    labels, probability = upsample_argmax(
        torch.randn(0, 3, 4, 5, device=device), 8, return_probability=True
    )
    assert labels.shape == probability.shape == (0, 8, 8)


def test_same_bits_with_any_threads():
    logits = smooth_logits(7, (33, 31))
    assert_same_bits_with_any_threads(lambda: upsample_argmax(logits, (129, 257)))


def test_opcheck_compile_autocast(device):
    logits = torch.randn(2, 3, 4, 5, device=device)
    for flags in ((True, False), (False, True)):
        torch.library.opcheck(operator, (logits, (9, 7), False, *flags))
    compiled = torch.compile(
        lambda x: upsample_argmax(x, (9, 7)), fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(compiled(logits), upsample_argmax(logits, (9, 7)))
    with torch.autocast(device.type, torch.bfloat16):
        _, probability = upsample_argmax(logits.bfloat16(), 8, return_probability=True)
    assert probability.dtype == torch.float32
    assert not upsample_argmax(logits.requires_grad_(), 8).requires_grad


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"logits": [1.0]}, TypeError, "logits must be a torch.Tensor, got list"),
        ({"logits": torch.ones(1, 2, 2, 2).int()}, TypeError, "got int32"),
        ({"logits": torch.ones(2, 2, 2)}, ValueError, r"\[N, C, H, W\]"),
        ({"logits": torch.ones(1, 0, 2, 2)}, ValueError, "logits must have non-empty"),
        ({"size": (0, 3)}, ValueError, r"size must be positive, got \(0, 3\)"),
        ({"size": None}, TypeError, "size must be an int or a pair of ints"),
        ({"dtype": torch.int32}, TypeError, "dtype must be torch.int64 or torch.uint8"),
        (
            {"logits": torch.ones(1, 257, 1, 1), "dtype": torch.uint8},
            ValueError,
            "holds 256 labels, logits have 257 channels",
        ),
    ],
)
def test_rejections(arguments, error, message):
    with pytest.raises(error, match=message):
        upsample_argmax(**{"logits": torch.ones(1, 2, 2, 2), "size": 4, **arguments})
