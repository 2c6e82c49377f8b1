"""Winograd keeps errors below twice PyTorch's for all operands (operand_check.h).

The error is the Euclidean norm over the whole map. The largest error may be four times PyTorch's,
because it varies by chance: live taps alone reach 3.5. PyTorch's error counts as at least two
roundings of the result. For the largest error it counts as at least u sum |w| |x|, the bound if
each product is rounded once: with few products PyTorch's error may happen to be zero.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tests.ops.atrous_conv2d.cases import (
    backward_input_op,
    backward_weight_op,
    forward_op,
    points_of,
)

suits_op = torch.ops.atrousx._atrous_conv2d_suits_filters.default

# C, K, (H, W), rate
LAYERS = {
    "tiles": (64, 32, (30, 31), 2),
    "pairs": (64, 32, (33, 32), 18),
    "triples": (256, 32, (33, 31), 12),
    "quads": (256, 32, (41, 38), 12),
}
HALF_LAYER = (64, 64, (61, 58), 2)


def normal(*size):
    return torch.randn(size)


def some(size, share):
    return torch.rand(size) < share


def spike(size):
    x = normal(*size) * 1e-3
    x[0, size[1] // 2, size[2] // 2, size[3] // 2] = 1e6
    return x


def one_pixel(size):
    x = torch.zeros(size)
    x[0, 0, size[2] // 2, size[3] // 2] = 1.7
    return x


MAPS = {
    "normal": lambda size: normal(*size),
    "clipped": lambda size: normal(*size).relu(),
    "a tenth": lambda size: normal(*size).abs() * some(size, 0.1),
    "a hundredth": lambda size: normal(*size).abs() * some(size, 0.01),
    "few pixels": lambda size: normal(*size).abs() * some((1, 1, *size[2:]), 0.01),
    "few channels": lambda size: normal(*size).abs() * some((*size[:2], 1, 1), 0.1),
    "ones": torch.ones,
    "constant channels": lambda size: normal(*size[:2], 1, 1).expand(size).contiguous(),
    "large mean": lambda size: normal(*size) + 100,
    "a ramp": lambda size: torch.linspace(0, 1, size[3]) * normal(*size[:2], 1, 1).expand(size),
    "a spike": spike,
    "one pixel": one_pixel,
    "spikes": lambda size: torch.where(some(size, 1e-4), 1e6, normal(*size) * 1e-3),
    "pixels of all scales": lambda size: normal(*size) * (3 * normal(1, 1, *size[2:])).exp(),
    "channels of all scales": lambda size: normal(*size) * 10 ** (5 * torch.rand(1, size[1], 1, 1)),
    "rows of all scales": lambda size: normal(*size) * 10 ** (6 * torch.rand(1, 1, size[2], 1)),
    "numbers of all scales": lambda size: normal(*size) * (3 * normal(*size)).exp(),
    "almost subnormal": lambda size: normal(*size) * 1e-37,
    "subnormal": lambda size: normal(*size) * 1e-39,
    "large": lambda size: normal(*size).clamp(-8, 8) * 1e36,
}


def at(row, column):
    mask = torch.zeros(3, 3)
    mask[row, column] = 1
    return mask


def identity(size):
    w = torch.zeros(size)
    for i in range(min(size[:2])):
        w[i, i, 1, 1] = 1
    return w


FILTERS = {
    "normal": lambda size: normal(*size),
    "of sum zero": lambda size: (lambda w: w - w.mean((2, 3), keepdim=True))(normal(*size)),
    "a centre": lambda size: normal(*size) * at(1, 1),
    "a corner": lambda size: normal(*size) * at(0, 0),
    "the identity": identity,
    "taps of all scales": lambda size: normal(*size) * (3 * normal(1, 1, 3, 3)).exp(),
    "of all scales": lambda size: normal(*size) * (2 * normal(*size)).exp(),
    "positive": lambda size: normal(*size).abs(),
    "edges": lambda size: (
        normal(*size[:2], 1, 1) * torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    ),
    "pruned": lambda size: normal(*size) * some(size, 0.1),
    "tiny": lambda size: normal(*size) * 1e-30,
}
# All maps with plain filters, all filters with plain maps, and pairs that a search found.
CASES = [(m, "normal") for m in MAPS]
CASES += [(m, f) for m in ("normal", "clipped") for f in FILTERS if f != "normal"]
CASES += [
    ("constant channels", "edges"),
    ("constant channels", "of sum zero"),
    ("a spike", "positive"),
    ("a hundredth", "a corner"),
    ("a tenth", "pruned"),
]


# One case of each kind, for slower layers, gradients and half types.
FEW = [("normal", "normal"), ("clipped", "normal"), ("constant channels", "edges")]
FEW += [("a spike", "positive"), ("few pixels", "normal"), ("a hundredth", "normal")]
FEW += [("subnormal", "normal"), ("large", "normal"), ("normal", "a corner"), ("normal", "tiny")]


def assert_accurate(result, torch_result, exact, products):
    unit = torch.finfo(result.dtype).eps / 2
    # Subnormal numbers have only a few bits, so smaller errors than this do not count.
    least = torch.finfo(result.dtype).smallest_normal * unit
    error, torch_error = (t.double() - exact for t in (result, torch_result))
    largest = max(torch_error.abs().max().item(), unit * products.abs().max().item(), least)
    norm = max(torch_error.norm().item(), 2 * unit * exact.norm().item(), least)
    assert error.abs().max().item() <= 4 * largest
    assert error.norm().item() <= 2 * norm


def operands(layer, of_map, of_filter, dtype=torch.float32):
    channels, outputs, size, rate = layer
    x = MAPS[of_map]((1, channels, *size)).to(dtype)
    w = (FILTERS[of_filter]((outputs, channels, 3, 3)) / math.sqrt(9 * channels)).to(dtype)
    return x, w, ((1, 1), (rate,) * 4, (rate, rate), 1), (1, rate, rate)


def assert_forward(layer, of_map, of_filter, dtype=torch.float32):
    x, w, geometry, options = operands(layer, of_map, of_filter, dtype)
    assert points_of(x.shape, w.shape, *geometry, False, dtype)
    exact, products = (
        F.conv2d(f(x.double()), f(w.double()), None, *options) for f in (lambda t: t, torch.abs)
    )
    torch_result = F.conv2d(x, w, None, *options)
    if not torch_result.isfinite().all():
        pytest.skip("beyond the range of the dtype")
    assert_accurate(forward_op(x, w, None, *geometry), torch_result, exact, products)


@pytest.mark.parametrize(
    ("layer", "of_map", "of_filter"),
    [("tiles", *case) for case in CASES]
    + [(layer, *case) for layer in ("pairs", "triples", "quads") for case in FEW],
)
def test_forward(layer, of_map, of_filter):
    assert_forward(LAYERS[layer], of_map, of_filter)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("of_map", "of_filter"), FEW)
def test_forward_of_half_types(of_map, of_filter, dtype):
    assert_forward(HALF_LAYER, of_map, of_filter, dtype)


GRADIENTS = ["normal", "a hundredth", "a spike", "few pixels", "constant channels", "subnormal"]


@pytest.mark.parametrize("of_map", GRADIENTS)
@pytest.mark.parametrize("of_grad", ["normal", "a tenth"])
@pytest.mark.parametrize("layer", ["tiles", "pairs", "quads"])
def test_grad_weight(layer, of_map, of_grad):
    x, w, geometry, options = operands(LAYERS[layer], of_map, "normal")
    grad = MAPS[of_grad]((1, w.shape[0], *x.shape[2:]))
    exact, products = (
        torch.nn.grad.conv2d_weight(f(x.double()), w.shape, f(grad.double()), *options)
        for f in (lambda t: t, torch.abs)
    )
    torch_result = torch.nn.grad.conv2d_weight(x, w.shape, grad, *options)
    assert_accurate(backward_weight_op(grad, x, w.shape, *geometry), torch_result, exact, products)


@pytest.mark.parametrize("of_map", GRADIENTS)
@pytest.mark.parametrize("of_filter", ["normal", "a corner", "edges"])
def test_grad_input(of_map, of_filter):
    x, w, geometry, options = operands(LAYERS["tiles"], "normal", of_filter)
    x_size, grad = x.shape, MAPS[of_map]((1, len(w), *x.shape[2:]))
    exact, products = (
        torch.nn.grad.conv2d_input(x_size, f(w.double()), f(grad.double()), *options)
        for f in (lambda t: t, torch.abs)
    )
    torch_result = torch.nn.grad.conv2d_input(x_size, w, grad, *options)
    assert_accurate(backward_input_op(grad, w, x_size, *geometry), torch_result, exact, products)


def test_what_is_finite_by_live_taps_stays_finite():
    x, w, geometry, options = operands(LAYERS["tiles"], "normal", "normal")
    x = 1e38 * x.sign()
    w *= 1e-3
    torch_result = F.conv2d(x, w, None, *options)
    assert torch_result.isfinite().all()
    torch.testing.assert_close(
        forward_op(x, w, None, *geometry), torch_result, rtol=1e-3, atol=1e31
    )


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_a_number_that_is_not_finite_reaches_its_own_outputs_alone(value):
    x, w, geometry, options = operands(LAYERS["tiles"], "normal", "normal")
    x[0, 3, 7, 8] = value
    torch_result, result = F.conv2d(x, w, None, *options), forward_op(x, w, None, *geometry)
    assert (~result[0, 0].isfinite()).sum() == 9
    assert torch.equal(result.isfinite(), torch_result.isfinite())
    assert torch.equal(result.isnan(), torch_result.isnan())
    weight = backward_weight_op(torch.ones_like(torch_result), x, w.shape, *geometry)
    assert weight[:, 4:].isfinite().all()


def test_which_filters_are_transformed():
    weight = torch.randn(64, 70, 3, 3)
    assert suits_op(weight)
    assert suits_op(weight.bfloat16())
    assert suits_op(torch.zeros(64, 70, 3, 3))
    for memory_format in (torch.contiguous_format, torch.channels_last):
        for of_filter in ("a centre", "a corner", "the identity", "edges", "of all scales"):
            w = FILTERS[of_filter]((64, 70, 3, 3)).contiguous(memory_format=memory_format)
            assert not suits_op(w), of_filter
    for value in (torch.inf, torch.nan, 1e30):
        weight[3, 4, 1, 2] = value
        assert not suits_op(weight)
    with pytest.raises(RuntimeError, match="weight must be on the CPU"):
        suits_op(weight.to("meta"))
