"""The tensor-core kernels of atrous_conv2d and their packing, run on the host."""

from __future__ import annotations

import numpy as np
import pytest

from tests.reference import atrous_conv2d as reference

# N, C, K, groups, (H, W), (KH, KW), stride, padding (of both sides, or top, left, bottom, right),
# dilation
CASES = {
    # 72 channels are more than a stage of half values, and more than two of TF32.
    "rate 3": (2, 72, 24, 1, (2, 9), (1, 3), (1, 1), (0, 3), (1, 3)),
    "more outputs than a tile": (1, 16, 136, 1, (3, 2), (1, 2), (1, 1), (0, 1), (1, 1)),
    "odd channels": (1, 19, 21, 1, (4, 3), (2, 3), (1, 1), (2, 2), (2, 2)),
    "groups, strided": (1, 32, 40, 2, (5, 8), (3, 2), (2, 3), (1, 2), (1, 2)),
    # 150 pixels of one class: two tiles, and more than two stages of a grad-weight.
    "pointwise": (3, 24, 16, 1, (1, 50), (1, 1), (1, 1), (0, 0), (1, 1)),
    "asymmetric": (1, 24, 17, 1, (4, 5), (2, 2), (1, 1), (0, 1, 2, 0), (2, 1)),
    "dead pixels": (1, 16, 16, 1, (1, 2), (2, 2), (1, 1), (4, 3), (3, 2)),
}
# Float32 sums of exact products of rounded operands, and one final rounding.
TOLERANCE = {"float16": 2e-3, "bfloat16": 2e-2, "tf32": 2e-5}


def bfloat16_bits(array):
    bits = array.astype(np.float32).view(np.uint32)
    return (bits + 0x7FFF + (bits >> 16 & 1) >> 16).astype(np.uint16)


def bfloat16_values(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def rounded_to_tf32(array):
    bits = array.astype(np.float32).view(np.uint32)
    return (bits + 0x1000 & 0xFFFFE000).astype(np.uint32).view(np.float32)


def problem(name, kind):
    """Operands as the kernels take them, and as the numbers that the tensor cores multiply."""
    batch, channels, outputs, groups, size, taps, stride, padding, dilation = CASES[name]
    rng = np.random.default_rng(0)
    sides = padding if len(padding) == 4 else (*padding, *padding)
    geometry = (stride, sides, dilation, groups)

    def operand(*shape):
        values = rng.uniform(-1, 1, shape).astype(np.float32)
        if kind == "float16":
            return values.astype(np.float16), values.astype(np.float16)
        if kind == "bfloat16":
            return bfloat16_bits(values), bfloat16_values(bfloat16_bits(values))
        return values, rounded_to_tf32(values)

    x, w = operand(batch, channels, *size), operand(outputs, channels // groups, *taps)
    b = operand(outputs)
    y = reference.forward(x[1], w[1], None, *geometry)
    return x, w, b, operand(*y.shape), geometry


def check(actual, expected, kind):
    actual = bfloat16_values(actual) if kind == "bfloat16" else actual
    scale = max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE[kind] * scale)


# Of (dtype, channels_last, columns of a tile) all four on the first case, two in turn on others.
VARIANTS = [
    ("float16", True, 128),
    ("tf32", False, 32),
    ("bfloat16", True, 64),
    ("tf32", True, 128),
]
CHOSEN = [
    (name, *VARIANTS[(i + v) % 4])
    for i, name in enumerate(CASES)
    for v in (range(4) if i == 0 else range(0, 4, 3))
]


@pytest.mark.parametrize(("name", "kind", "channels_last", "columns"), CHOSEN)
def test_three_passes(emulated, name, kind, channels_last, columns):
    (x, x_exact), (w, w_exact), (b, _), (grad, grad_exact), geometry = problem(name, kind)
    stride, sides, dilation, groups = geometry
    # Two blocks for more jobs than that: shared memory is used again.
    options = emulated.TensorcoreOptions(
        stride, sides[:2], dilation, groups, channels_last, columns, 2
    )
    # The bias is added as it is, not rounded to TF32.
    added = bfloat16_values(b) if kind == "bfloat16" else b
    actual = emulated.tensorcore_forward(x, w, b, None, False, grad.shape[2:], options)
    expected = reference.forward(x_exact, w_exact, added, *geometry)
    check(actual, expected, kind)
    residual = bfloat16_values(grad) if kind == "bfloat16" else grad
    actual = emulated.tensorcore_forward(x, w, b, grad, True, grad.shape[2:], options)
    check(actual, np.maximum(expected + residual, 0), kind)

    actual = emulated.tensorcore_backward_input(grad, w, x.shape[2:], options)
    expected = reference.backward_input(grad_exact, w_exact, x.shape[2:], *geometry)
    check(actual, expected, kind)

    actual = emulated.tensorcore_backward_weight(grad, x, w.shape[2:], 3, options)
    expected = reference.backward_weight(grad_exact, x_exact, w.shape[2:], *geometry)
    check(actual, expected, kind)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize(
    ("size", "groups", "spare"),
    [
        ((2, 70, 9, 9), 1, 0),  # planes of 81 pixels: their rows start at every place of a vector
        ((1, 37, 5, 13), 1, 3),  # a map that starts within a vector
        ((2, 38, 3, 7), 2, 0),
        ((1, 8, 8, 8), 1, 0),  # whole vectors throughout
        ((1, 3, 1, 2), 1, 1),  # less than a vector in all
    ],
)
def test_packing_of_contiguous_maps(emulated, dtype, size, groups, spare):
    values = np.random.default_rng(0).uniform(-1, 1, spare + np.prod(size)).astype(dtype)
    x = values[spare:].reshape(size)
    strides = [stride // x.itemsize for stride in x.strides]
    packed = emulated.tensorcore_pack_map(values, spare, size, strides, groups)
    vector, channels = 16 // x.itemsize, size[1] // groups
    expected = np.zeros((size[0], *size[2:], groups, -(-channels // vector) * vector), dtype)
    expected[..., :channels] = x.reshape(size[0], groups, channels, *size[2:]).transpose(
        0, 3, 4, 1, 2
    )
    np.testing.assert_array_equal(packed, expected)


def test_packing_of_strided_maps(emulated):
    values = np.arange(2 * 6 * 9 * 4, dtype=np.float32).reshape(2, 6, 9, 4)
    # Every other pixel of channels_last rows, and of three of the four channels.
    x = values[:, :, ::2, 1:]
    strides = [x.strides[i] // 4 for i in (0, 3, 1, 2)]
    packed = emulated.tensorcore_pack_map(values, 1, (2, 3, 6, 5), strides, 1)
    np.testing.assert_array_equal(packed[:, :, :, 0, :3], x)
    assert (packed[..., 3] == 0).all()


def test_grad_weight_of_an_empty_batch_is_zero(emulated):
    options = emulated.TensorcoreOptions((1, 1), (1, 1), (1, 1), 1, True, 64, 2)
    grad, x = np.zeros((0, 16, 3, 3), np.float16), np.zeros((0, 17, 3, 3), np.float16)
    result = emulated.tensorcore_backward_weight(grad, x, (3, 3), 1, options)
    assert result.shape == (16, 17, 3, 3)
    assert (result == 0).all()


def test_infinite_weights_do_not_meet_padding(emulated):
    # A dead tap, or a channel beyond the last one, that were multiplied by zero would give NaN.
    options = emulated.TensorcoreOptions((1, 1), (2, 2), (2, 2), 1, True, 64, 1)
    w = np.full((16, 17, 3, 3), np.inf, np.float16)
    w[..., 1, 1] = 3
    result = emulated.tensorcore_forward(
        np.ones((1, 17, 2, 2), np.float16), w, None, None, False, (2, 2), options
    )
    assert (result == 51).all()


def test_results_do_not_depend_on_the_number_of_blocks(emulated):
    (x, _), (w, _), _, (grad, _), geometry = problem("rate 3", "float16")
    stride, sides, dilation, groups = geometry
    results = []
    for blocks in (1, 7):
        options = emulated.TensorcoreOptions(stride, sides[:2], dilation, groups, True, 32, blocks)
        results.append(
            (
                emulated.tensorcore_forward(x, w, None, None, False, grad.shape[2:], options),
                emulated.tensorcore_backward_weight(grad, x, w.shape[2:], 3, options),
            )
        )
    for one, seven in zip(*results, strict=True):
        np.testing.assert_array_equal(one, seven)
