"""ops.upsample_cross_entropy: literal cases, reference, gradient, contract, rejections."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from atrousx.ops import upsample_cross_entropy
from tests.ops.common import (
    FLOATING,
    FORMATS,
    assert_as_accurate_as_torch,
    assert_same_bits_with_any_threads,
    strided_views,
    to_float64,
)
from tests.reference import upsample_cross_entropy as reference

forward_op = torch.ops.atrousx._upsample_cross_entropy.default
backward_op = torch.ops.atrousx._upsample_cross_entropy_backward.default
SIZES = [
    ((2, 3), (5, 7)),
    ((7, 5), (3, 2)),
    ((1, 1), (4, 70)),
    ((2, 1), (20, 140)),
    ((9, 9), (33, 133)),
]
IGNORED = 255


def two_steps(logits, target, weight=None, align_corners=False, **options):
    upsampled = F.interpolate(
        logits, target.shape[1:], mode="bilinear", align_corners=align_corners
    )
    return F.cross_entropy(upsampled, target.long(), weight, **options)


def labels(channels, size, device, dtype=torch.int64):
    target = torch.randint(channels, (2, *size), device=device)
    target[0, : size[0] // 2] = IGNORED
    return target.to(dtype)


def test_uniform_logits_by_hand(device):
    logits = torch.zeros(1, 4, 2, 2, device=device, requires_grad=True)
    target = torch.zeros(1, 4, 4, dtype=torch.int64, device=device)
    loss = upsample_cross_entropy(logits, target)
    loss.backward()
    assert math.isclose(loss.item(), math.log(4), rel_tol=1e-6)
    # Each of the four logits of a class gets a quarter of the pixels: p - 1 and p, over 4.
    assert logits.grad is not None
    expected = torch.tensor([-0.75, 0.25, 0.25, 0.25], device=device) / 4
    torch.testing.assert_close(logits.grad, expected[None, :, None, None].expand(1, 4, 2, 2))


def test_class_weights_by_hand(device):
    logits = torch.zeros(1, 2, 1, 1, device=device)
    target = torch.tensor([[[0, 1]]], device=device)
    weight = torch.tensor([1.0, 3.0], device=device)
    loss = upsample_cross_entropy(logits, target, weight, reduction="sum")
    assert math.isclose(loss.item(), 4 * math.log(2), rel_tol=1e-6)


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("options", ["plain", "weights, smoothing, align_corners"])
@pytest.mark.parametrize(("small", "large"), SIZES)
def test_against_oracle(device, small, large, options, reduction, memory_format, dtype):
    plain = options == "plain"
    logits = torch.randn(2, 6, *small, device=device).to(dtype).to(memory_format=memory_format)
    logits.requires_grad_()
    target = labels(6, large, device)
    weight = None if plain else torch.rand(6, device=device).to(dtype)
    smoothing, align_corners = (0.0, False) if plain else (0.1, True)
    loss = upsample_cross_entropy(
        logits,
        target,
        weight,
        ignore_index=IGNORED,
        reduction=reduction,
        label_smoothing=smoothing,
        align_corners=align_corners,
    )
    torch_loss = two_steps(
        logits,
        target,
        weight,
        align_corners,
        ignore_index=IGNORED,
        reduction=reduction,
        label_smoothing=smoothing,
    )
    grad = torch.rand_like(loss) if reduction == "none" else torch.ones_like(loss)
    exact, exact_gradient = reference.loss_and_gradient(
        to_float64(logits),
        target.cpu().numpy(),
        None if weight is None else to_float64(weight),
        IGNORED,
        reduction,
        smoothing,
        align_corners,
        to_float64(grad),
    )
    (gradient,) = torch.autograd.grad(loss, logits, grad)
    (torch_gradient,) = torch.autograd.grad(torch_loss, logits, grad)
    if dtype == torch.float64:
        # The reference has the same rounding error, and much cancels in a gradient's sum.
        scale = np.abs(to_float64(grad)).sum() / (target.numel() if reduction == "mean" else 1)
        np.testing.assert_allclose(to_float64(loss), exact, rtol=1e-13)
        np.testing.assert_allclose(to_float64(gradient), exact_gradient, atol=1e-13 * scale)
    else:
        assert_as_accurate_as_torch(loss, torch_loss, exact)
        assert_as_accurate_as_torch(gradient, torch_gradient, exact_gradient)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_label_types(device, dtype):
    logits = torch.randn(2, 6, 4, 5, device=device)
    target = labels(6, (9, 11), device)
    expected = upsample_cross_entropy(logits, target, ignore_index=IGNORED)
    actual = upsample_cross_entropy(logits, target.to(dtype), ignore_index=IGNORED)
    assert torch.equal(actual, expected)


def test_large_logits_do_not_overflow(device):
    logits = torch.tensor([[[[1e4]], [[-1e4]]]], device=device, requires_grad=True)
    loss = upsample_cross_entropy(logits, torch.ones(1, 3, 3, dtype=torch.int64, device=device))
    loss.backward()
    assert loss.item() == 2e4
    assert logits.grad is not None
    assert logits.grad.flatten().tolist() == [1.0, -1.0]


def test_all_ignored_is_nan_for_mean_as_in_torch(device):
    logits = torch.randn(1, 3, 2, 2, device=device)
    target = torch.full((1, 4, 4), -100, device=device)
    assert upsample_cross_entropy(logits, target).isnan()
    assert upsample_cross_entropy(logits, target, reduction="sum") == 0
    assert not upsample_cross_entropy(logits, target, reduction="none").any()


def test_label_out_of_range_is_named():
    logits = torch.randn(2, 3, 2, 2)
    target = torch.zeros(2, 4, 4, dtype=torch.int64)
    target[1, 2, 3] = 7
    message = r"labels from 0 to 2 or ignore_index \(255\), got 7 at \[1, 2, 3\]"
    for reduction in ("mean", "none"):
        with pytest.raises(ValueError, match=message):
            upsample_cross_entropy(logits, target, ignore_index=255, reduction=reduction)
    # If the network's logits are NaN, the target is not to blame.
    target[1, 2, 3] = 1
    assert upsample_cross_entropy(logits * float("nan"), target).isnan()


def test_label_out_of_range_is_nan_on_a_gpu(device):
    if device.type == "cpu":
        pytest.skip("it raises there")
    logits = torch.randn(1, 3, 2, 2, device=device, requires_grad=True)
    target = torch.zeros(1, 4, 4, dtype=torch.int64, device=device)
    target[0, 1, 2] = 3
    losses = upsample_cross_entropy(logits, target, reduction="none")
    assert losses.isnan().nonzero().tolist() == [[0, 1, 2]]
    loss = upsample_cross_entropy(logits, target, reduction="sum")
    assert loss.isnan()
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.isnan().any()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("size", [(7, 9), (2, 3)])
def test_gradcheck(device, reduction, size):
    logits = torch.randn(2, 3, 3, 4, dtype=torch.float64, device=device, requires_grad=True)
    target = labels(3, size, device)
    weight = torch.rand(3, dtype=torch.float64, device=device)

    def loss(x):
        return upsample_cross_entropy(
            x, target, weight, ignore_index=IGNORED, reduction=reduction, label_smoothing=0.2
        )

    assert torch.autograd.gradcheck(loss, logits)


def test_second_derivative_is_refused(device):
    logits = torch.randn(1, 3, 3, 4, device=device, requires_grad=True)
    target = torch.zeros(1, 5, 5, dtype=torch.int64, device=device)
    (grad,) = torch.autograd.grad(upsample_cross_entropy(logits, target), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.sum().backward()


def test_any_strides_and_empty_batch(device):
    logits = torch.randn(2, 3, 4, 5, device=device)
    target = labels(3, (7, 9), device)
    expected = upsample_cross_entropy(logits, target, ignore_index=IGNORED)
    for view in strided_views(logits):
        actual = upsample_cross_entropy(view, target, ignore_index=IGNORED)
        torch.testing.assert_close(actual, expected)
    transposed = target.mT.contiguous().mT
    assert torch.equal(upsample_cross_entropy(logits, transposed, ignore_index=IGNORED), expected)
    empty = logits[:0].requires_grad_()
    loss = upsample_cross_entropy(empty, target[:0], reduction="sum")
    loss.backward()
    assert loss == 0
    assert empty.grad is not None
    assert empty.grad.shape == empty.shape


@pytest.mark.parametrize("memory_format", FORMATS)
def test_same_bits_with_any_threads(memory_format):
    logits = torch.randn(2, 5, 17, 15).to(memory_format=memory_format).requires_grad_()
    target = labels(5, (129, 65), "cpu")

    def gradient():
        loss = upsample_cross_entropy(logits, target, ignore_index=IGNORED)
        return torch.autograd.grad(loss, logits)[0]

    assert_same_bits_with_any_threads(gradient)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("reduction", [0, 1])
def test_opcheck(device, memory_format, reduction):
    logits = torch.randn(2, 3, 4, 5, device=device).to(memory_format=memory_format)
    target = labels(3, (7, 9), device)
    options = (IGNORED, 0.1, False, reduction)
    torch.library.opcheck(forward_op, (logits.clone().requires_grad_(), target, None, *options))
    loss, *saved = forward_op(logits, target, None, *options)
    torch.library.opcheck(
        backward_op, (torch.rand_like(loss), logits, target, None, *saved, *options)
    )


def test_compile_and_autocast(device):
    logits = torch.randn(2, 3, 4, 5, device=device, requires_grad=True)
    target = labels(3, (7, 9), device)

    def loss(x):
        return upsample_cross_entropy(x, target, ignore_index=IGNORED)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(logits), loss(logits))
    torch.testing.assert_close(
        torch.autograd.grad(compiled(logits), logits), torch.autograd.grad(loss(logits), logits)
    )
    with torch.autocast(device.type, torch.bfloat16):
        assert loss(logits).dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"logits": torch.ones(2, 2, 2)}, ValueError, r"logits must have 4 dimensions"),
        ({"target": torch.zeros(1, 4, 4)}, TypeError, "target must be int64, int32 or uint8"),
        ({"target": torch.zeros(1, 4).long()}, ValueError, "target must have 3 dimensions"),
        ({"target": torch.zeros(2, 4, 4).long()}, ValueError, r"batch of logits \(1\)"),
        ({"weight": torch.ones(3)}, ValueError, r"weight must have shape \(2,\)"),
        ({"weight": torch.ones(2).requires_grad_()}, RuntimeError, "must not require a gradient"),
        ({"reduction": "max"}, ValueError, "reduction must be one of"),
        ({"label_smoothing": 1.5}, ValueError, r"label_smoothing must lie in 0..1, got 1.5"),
    ],
)
def test_rejections(arguments, error, message):
    target = torch.zeros(1, 4, 4, dtype=torch.int64)
    with pytest.raises(error, match=message):
        upsample_cross_entropy(**{"logits": torch.ones(1, 2, 2, 2), "target": target, **arguments})


def test_direct_calls_cannot_read_out_of_bounds():
    logits, target = torch.ones(1, 2, 4, 4), torch.zeros(1, 5, 5, dtype=torch.int64)
    options = (-100, 0.0, False, 1)
    loss, weight, log_sum = forward_op(logits, target, None, *options)
    for call in (
        lambda: forward_op(logits, target[:, 0], None, *options),
        lambda: forward_op(logits, target.mT, None, *options),
        lambda: forward_op(logits, target, torch.ones(3), *options),
        lambda: forward_op(logits, target, None, -100, 0.0, False, 3),
        lambda: backward_op(log_sum, logits, target, None, weight, log_sum, *options),
        lambda: backward_op(loss, logits, target, None, weight, log_sum[:, 1:], *options),
        lambda: backward_op(loss, logits, target, None, loss, log_sum, *options),
    ):
        with pytest.raises(RuntimeError):
            call()


def test_no_buffer_of_the_upsampled_logits():
    logits = torch.randn(1, 64, 9, 9, requires_grad=True)
    target = torch.randint(64, (1, 200, 200))
    with torch.profiler.profile(profile_memory=True) as profile:
        upsample_cross_entropy(logits, target).backward()
    (allocated,) = (
        event.self_cpu_memory_usage
        for event in profile.key_averages()
        if event.key == "aten::empty"
    )
    # The sum of all allocations: one number per pixel, and small multiples of the logits.
    assert allocated <= 4 * target.numel() + 20 * logits.numel()
