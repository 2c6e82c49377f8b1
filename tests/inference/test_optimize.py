"""atrousx.optimize: the same function, folded; what it rejects, and what it leaves unchanged."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import atrousx
from atrousx.inference.fused import FusedASPP, FusedConv2d
from atrousx.models.backbones.resnet import Bottleneck
from tests.models.torchvision_reference import random_state


@pytest.fixture(params=["native", "auto", "torch", "measure"], autouse=True)
def _backend(request):
    before = atrousx.get_backend()
    atrousx.set_backend(request.param)
    yield
    atrousx.set_backend(before)


def prepared(model):
    model.load_state_dict(random_state(model))
    return model.eval()


def chain():
    return nn.Sequential(
        nn.Conv2d(3, 9, 3, padding=2, dilation=2),
        nn.BatchNorm2d(9),
        nn.ReLU(),
        nn.Conv2d(9, 8, 1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding="same", groups=8, bias=False),
        nn.BatchNorm2d(8, affine=False),
        nn.Conv2d(8, 4, 2, padding=1, padding_mode="reflect"),
        nn.BatchNorm2d(4),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(4),
    )


MODELS = {
    "chain": (chain, (2, 3, 9, 8)),
    "unit": (lambda: Bottleneck(16, 4, 1, 2), (2, 16, 9, 7)),
    "unit with a shortcut": (lambda: Bottleneck(6, 4, 2, 2), (2, 6, 9, 7)),
    "unit with a subsampled shortcut": (lambda: Bottleneck(16, 4, 2, 2), (2, 16, 9, 7)),
    "unit of 3x3 filters to transform": (lambda: Bottleneck(48, 32, 1, 2), (2, 48, 16, 17)),
    "ASPP": (lambda: atrousx.ASPP(20, (2, 4, 5), 12), (2, 20, 9, 11)),
}


def assert_as_accurate(fast, model, input):
    """Asserts that the error against float64 is at most twice the model's own, or two roundings."""
    exact = copy.deepcopy(model).double()(input.double())
    error, error_before = ((m(input).double() - exact).norm() for m in (fast, model))
    floor = 2 * torch.finfo(input.dtype).eps * exact.norm()
    assert error <= max(2 * error_before, floor), f"error {error:.3g}, before {error_before:.3g}"


@pytest.mark.parametrize("name", MODELS)
def test_same_function(device, name):
    build, shape = MODELS[name]
    model = prepared(build()).to(device)
    state = copy.deepcopy(model.state_dict())
    fast = atrousx.optimize(model)
    for input in (torch.randn(shape, device=device), torch.randn(shape, device=device)[:0]):
        assert fast(input).shape == model(input).shape
    assert_as_accurate(fast, model, torch.randn(shape, device=device))
    # The original is unchanged.
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    again = pickle.loads(pickle.dumps(fast))
    input = torch.randn(shape, device=device)
    assert torch.equal(again(input), fast(input))
    assert torch.equal(copy.deepcopy(fast)(input), fast(input))


@pytest.mark.parametrize("name", MODELS)
def test_gradient_of_the_input(device, name):
    build, shape = MODELS[name]
    model = prepared(build()).to(device).double()
    input = torch.randn(shape, device=device, dtype=torch.float64, requires_grad=True)
    grads = [
        torch.autograd.grad(m(input).square().sum(), input)[0]
        for m in (model, atrousx.optimize(model))
    ]
    torch.testing.assert_close(*grads)


def test_a_chain_is_folded():
    fast = atrousx.optimize(prepared(chain()))
    names = [type(layer).__name__ for layer in fast]
    folded = ["FusedConv2d", "Identity"]
    expected = [*folded, "Identity", *folded, *folded, *folded, "MaxPool2d", "BatchNorm2d"]
    assert names == expected
    assert [layer.relu for layer in fast if isinstance(layer, FusedConv2d)] == [1, 1, 0, 0]
    assert fast[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not any(p.requires_grad for p in fast[0].parameters())


def test_layers_become_what_they_are_fused_to():
    unit = atrousx.optimize(prepared(Bottleneck(16, 4, 1, 1)))
    assert [unit.conv1.relu, unit.conv2.relu, unit.conv3.relu] == [True, True, True]
    assert [type(norm) for norm in (unit.bn1, unit.bn2, unit.bn3)] == [nn.Identity] * 3
    assert type(atrousx.optimize(prepared(atrousx.ASPP(8, (2,), 4)))) is FusedASPP
    assert type(atrousx.optimize(nn.Conv2d(3, 4, 1).eval())) is FusedConv2d


def test_deeplab_v3():
    model = prepared(atrousx.models.deeplab_v3(num_classes=3, layout="torchvision"))
    fast = atrousx.optimize(model)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fast.modules())
    input = torch.randn(1, 3, 49, 33)
    with torch.no_grad():
        after, before = fast(input)["out"], model(input)["out"]
        exact = copy.deepcopy(model).double()(input.double())["out"]
    errors = [(result.double() - exact).norm() for result in (after, before)]
    assert errors[0] <= 2 * errors[1]


def test_inplace():
    model = prepared(chain())
    assert atrousx.optimize(model, inplace=True) is model


def test_inputs_are_brought_to_channels_last():
    fast = atrousx.optimize(prepared(nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU())))
    assert fast(torch.randn(1, 3, 9, 9)).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("multiplier", [1, 2])
def test_depthwise_layers_leave_the_format_alone(memory_format, multiplier):
    conv = nn.Conv2d(6, 6 * multiplier, 3, padding=2, dilation=2, groups=6)
    model = prepared(nn.Sequential(conv, nn.BatchNorm2d(6 * multiplier), nn.ReLU()))
    model = model.to(memory_format=torch.channels_last)
    layer = atrousx.optimize(model)[0]
    input = torch.randn(2, 6, 9, 8).contiguous(memory_format=memory_format)
    result = layer(input)
    assert result.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(result, model(input))


@pytest.mark.parametrize("groups", [2, 6])
def test_narrow_groups_add_a_residual(groups):
    conv = nn.Conv2d(6, 6, 3, padding=1, groups=groups)
    layer = FusedConv2d.make(conv, relu=True)
    input, residual = torch.randn(2, 6, 9, 8), torch.randn(2, 6, 9, 8)
    result = layer(input, residual)
    torch.testing.assert_close(result, (conv(input) + residual).relu())


def test_hooked_layers_are_not_folded():
    model = prepared(chain())
    seen = []
    model[1].register_forward_hook(lambda *_: seen.append(1))
    fast = atrousx.optimize(model)
    assert type(fast[1]) is nn.BatchNorm2d
    input = torch.randn(1, 3, 9, 8)
    torch.testing.assert_close(fast(input), model(input), rtol=1e-4, atol=1e-4)
    assert seen


def test_autocast(device):
    model = prepared(atrousx.ASPP(20, (2, 4), 12)).to(device)
    input = torch.randn(2, 20, 9, 11, device=device)
    fast = atrousx.optimize(model)
    with torch.autocast(device.type, torch.bfloat16):
        result = fast(input)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.float(), model(input), rtol=0.05, atol=0.1)


def test_compile():
    model = prepared(atrousx.ASPP(20, (2, 4), 12))
    fast = atrousx.optimize(model)
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    input = torch.randn(2, 20, 9, 11)
    with torch.no_grad():
        torch.testing.assert_close(compiled(input), model(input), rtol=1e-4, atol=1e-4)


def test_rejects():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Dropout()).eval()
    model[1].train()
    with pytest.raises(ValueError, match=r"evaluation mode.*got 1 modules in training.*first.* 1$"):
        atrousx.optimize(model)
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got list"):
        atrousx.optimize([model])


def test_weights_are_packed_once_and_anew_when_they_change():
    atrousx.set_backend("native")
    fast = atrousx.optimize(prepared(nn.Sequential(nn.Conv2d(5, 9, 3), nn.ReLU())))
    layer, image = fast[0], torch.rand(1, 5, 8, 9)
    with torch.no_grad():
        before = fast(image)
        packed = layer.packed.of(layer._parameters, "weight")
        fast(image)
        assert layer.packed.of(layer._parameters, "weight") is packed
        layer.weight.mul_(2)
        layer.bias.mul_(2)
        torch.testing.assert_close(fast(image), 2 * before)
        # Neither a copy nor a stored model keeps the packed form: another CPU would read it
        # wrongly.
        for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
            assert not other[0].packed._forms
            assert torch.equal(other(image), fast(image))
        assert list(fast.state_dict()) == ["0.weight", "0.bias"]
        with torch.autocast("cpu", torch.bfloat16):
            assert fast(image).dtype == torch.bfloat16
        half = copy.deepcopy(fast).bfloat16()
        torch.testing.assert_close(
            half(image.bfloat16()).float(), fast(image), rtol=0.05, atol=0.05
        )
