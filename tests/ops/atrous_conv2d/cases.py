"""Convolutions that the tests of atrous_conv2d share, and its operators by name."""

from __future__ import annotations

import torch

import atrousx  # noqa: F401, it registers the operators

forward_op = torch.ops.atrousx.atrous_conv2d.default
fused_op = torch.ops.atrousx._atrous_conv2d_fused.default
pack_op = torch.ops.atrousx._atrous_conv2d_pack_weight.default
backward_input_op = torch.ops.atrousx._atrous_conv2d_backward_input.default
backward_weight_op = torch.ops.atrousx._atrous_conv2d_backward_weight.default
algorithm_op = torch.ops.atrousx._atrous_conv2d_algorithm.default


def points_of(input, weight, stride, sides, dilation, groups, frozen, dtype):
    """Returns the Winograd points of a forward pass on the CPU; empty if it multiplies live taps.

    ``frozen``: the weight is packed beforehand.
    """
    like = torch.empty(0, dtype=dtype)
    geometry = (stride, sides, dilation, groups)
    _, *points = algorithm_op(like, 0, input, weight, *geometry, False, frozen, False)
    return points


# N, C, K, groups, (H, W), (KH, KW), stride, padding, dilation
CASES = {
    "rate 6 on a small map": (2, 20, 37, 1, (9, 7), (3, 3), (1, 1), (6, 6), (6, 6)),
    "plain": (1, 16, 8, 1, (5, 6), (3, 3), (1, 1), (1, 1), (1, 1)),
    "pointwise, strided": (2, 9, 16, 1, (5, 7), (1, 1), (2, 2), (0, 0), (1, 1)),
    "strided, unequal axes": (1, 3, 10, 1, (11, 13), (4, 3), (3, 2), (2, 5), (2, 3)),
    "groups": (2, 16, 24, 2, (6, 5), (3, 2), (1, 2), (2, 1), (2, 1)),
    "narrow groups": (1, 8, 12, 4, (7, 6), (3, 3), (2, 1), (2, 3), (1, 3)),
    "depthwise": (2, 19, 19, 19, (9, 8), (3, 3), (1, 1), (2, 2), (2, 2)),
    "depthwise, many channels": (1, 83, 83, 83, (4, 5), (3, 3), (1, 1), (3, 2), (3, 2)),
    "depthwise, strided": (2, 5, 5, 5, (21, 38), (3, 4), (2, 3), (4, 7), (3, 2)),
    "depthwise, stride 2": (2, 5, 5, 5, (9, 38), (3, 3), (2, 2), (1, 1), (1, 1)),
    "depthwise, narrower than its stride": (2, 3, 3, 3, (3, 2), (3, 3), (5, 5), (1, 1), (1, 1)),
    "depthwise, taps wholly dead": (2, 6, 6, 6, (5, 7), (3, 3), (1, 1), (9, 4), (9, 4)),
    "depthwise, multiplied": (1, 3, 9, 3, (6, 7), (3, 3), (1, 2), (1, 1), (1, 1)),
    "one output": (1, 30, 1, 1, (5, 5), (3, 3), (1, 1), (2, 2), (2, 2)),
    "stem": (2, 3, 20, 1, (15, 12), (7, 7), (2, 2), (3, 3), (1, 1)),
    "stem of a grey image": (1, 1, 9, 1, (13, 14), (5, 5), (2, 2), (1, 3), (1, 2)),
    "pixels without a live tap": (1, 8, 8, 1, (1, 3), (2, 2), (1, 1), (5, 4), (3, 2)),
    "narrow groups, dead pixels": (1, 6, 6, 2, (1, 3), (2, 2), (1, 1), (5, 4), (3, 2)),
    # More classes of pixels than fit in one CUDA kernel's plan.
    "many classes": (1, 8, 8, 1, (9, 3), (9, 1), (1, 1), (8, 0), (1, 1)),
    # Whole vectors of channels, for which CUDA has special kernels.
    "depthwise, 16 channels": (2, 16, 16, 16, (9, 11), (3, 3), (1, 1), (4, 4), (4, 4)),
    "depthwise, 8 channels, strided": (1, 8, 8, 8, (8, 7), (3, 2), (2, 3), (1, 2), (1, 2)),
    "depthwise, 72 channels": (1, 72, 72, 72, (3, 4), (5, 5), (1, 1), (2, 2), (1, 1)),
    "depthwise, 8 channels, dead pixels": (1, 8, 8, 8, (1, 2), (2, 2), (1, 1), (4, 3), (3, 2)),
    # Enough pixels that CUDA sums a grad-weight in parts.
    "many pixels": (2, 16, 16, 1, (23, 23), (1, 2), (1, 1), (0, 1), (1, 2)),
    "many pixels, depthwise": (2, 8, 8, 8, (23, 23), (1, 2), (1, 1), (0, 1), (1, 2)),
}
# Several slabs of channels, tiles, blocks of outputs, and packing steps. Not tested in float64: in
# such long sums a float64 reference has as much rounding error as the result.
WIDE = {
    # More channels, outputs or pixels than tensor cores take at once.
    "72 channels": (2, 72, 24, 1, (2, 9), (1, 3), (1, 1), (0, 3), (1, 3)),
    "136 outputs": (1, 16, 136, 1, (3, 2), (1, 2), (1, 1), (0, 1), (1, 1)),
    "150 pixels": (3, 24, 16, 1, (1, 50), (1, 1), (1, 1), (0, 0), (1, 1)),
    "wide groups, strided": (1, 32, 40, 2, (5, 8), (3, 2), (2, 3), (1, 2), (1, 2)),
    "16 channels, dead pixels": (1, 16, 16, 1, (1, 2), (2, 2), (1, 1), (4, 3), (3, 2)),
    "channels and outputs past a block": (1, 131, 70, 1, (19, 20), (3, 3), (1, 1), (6, 6), (6, 6)),
    "outputs past a tile, channels past a stage": (
        1,
        72,
        65,
        1,
        (9, 8),
        (3, 3),
        (1, 1),
        (2, 2),
        (2, 2),
    ),
    "few channels, pixels past a part": (2, 5, 33, 1, (31, 30), (3, 3), (1, 1), (4, 4), (4, 4)),
    "21 outputs": (2, 65, 21, 1, (13, 12), (3, 3), (1, 1), (4, 4), (4, 4)),
    "more taps than a product is deep": (1, 9, 8, 1, (19, 20), (26, 25), (1, 1), (13, 12), (1, 1)),
    "slabs by steps": (1, 24000, 16, 2, (10, 10), (1, 2), (1, 1), (0, 1), (1, 3)),
    "channels by chunks": (1, 5100, 10, 1, (33, 31), (1, 2), (1, 1), (0, 9), (1, 18)),
    "outputs by chunks": (1, 8, 4800, 1, (33, 31), (2, 1), (1, 1), (2, 0), (4, 1)),
    "images by chunks": (21, 200, 9, 1, (33, 32), (1, 2), (1, 1), (0, 1), (1, 3)),
    "few outputs of many channels": (2, 1230, 21, 1, (9, 8), (3, 3), (1, 1), (4, 4), (4, 4)),
    "groups of few outputs": (2, 320, 288, 16, (9, 17), (3, 4), (2, 3), (2, 3), (2, 1)),
    "pairs of pixels, strided": (2, 60, 40, 1, (9, 17), (3, 4), (2, 3), (2, 3), (2, 1)),
}

# Only in the default layout: PyTorch 2.13 returns NaN for channels_last gradients of half types.
CONTIGUOUS = {
    "depthwise, rows of some vectors": (1, 3, 3, 3, (20, 85), (5, 3), (1, 1), (8, 20), (4, 20)),
    "depthwise, rows of some vectors, stride 2": (
        1,
        2,
        2,
        2,
        (9, 171),
        (3, 5),
        (2, 2),
        (2, 2),
        (2, 1),
    ),
    "depthwise, rows of some vectors, stride 4": (
        1,
        2,
        2,
        2,
        (9, 150),
        (3, 3),
        (4, 4),
        (1, 1),
        (1, 1),
    ),
}


# C, K, groups, dtype: one layer for each kind of kernel.
KINDS = {
    "product": (9, 10, 1, torch.float32),
    "narrow groups": (6, 9, 3, torch.float32),
    "depthwise": (8, 8, 8, torch.float16),
    "tensor cores": (24, 17, 1, torch.float16),
}


def make(name, dtype, device, memory_format=torch.contiguous_format):
    case = (CASES | WIDE | CONTIGUOUS)[name]
    batch, channels, outputs, groups, size, taps, stride, padding, dilation = case
    x = torch.randn(batch, channels, *size, dtype=dtype, device=device)
    w = torch.randn(outputs, channels // groups, *taps, dtype=dtype, device=device)
    b = torch.randn(outputs, dtype=dtype, device=device)
    x = x.to(memory_format=memory_format)
    return x, w, b, (stride, padding, dilation, groups)
