"""atrousx.optimize looks into Sequentials: chains of layers go on beyond their ends."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import atrousx
from atrousx.inference.fused import FusedConv2d


class Separable(nn.Sequential):
    """A subclass without a forward of its own."""

    def __init__(self):
        super().__init__(nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Conv2d(4, 4, 1))


class Doubled(nn.Sequential):
    def forward(self, input):
        return 2 * super().forward(input)


class Branch(nn.Module):
    """A residual whose branch is a Sequential, beside one that has nothing to fold into the sum."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.block = nn.Sequential(self._unit(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))

    @staticmethod
    def _unit():
        return nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())

    def forward(self, x):
        x = self.first(x)
        return x + self.block(x)


class CalledTwice(nn.Module):
    def __init__(self, conv):
        super().__init__()
        self.conv, self.bn, self.bn2 = conv, nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.bn(self.conv(x)) + self.bn2(self.conv(x))


class Untraceable(nn.Module):
    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, x):
        return self.conv(x) if x.sum() > 0 else -self.conv(x)


def prepared(model):
    """Returns a model whose normalisations are not the identity."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -1, 1)
    return model.eval()


def count(model, kind):
    return sum(isinstance(module, kind) for module in model.modules())


def assert_same(model, left: int):
    """The optimized model computes the same and has so many normalisations left."""
    image = torch.randn(2, 4, 9, 11)
    expected = model(image)
    optimized = atrousx.optimize(copy.deepcopy(model))
    assert torch.allclose(optimized(image), expected, rtol=1e-4, atol=1e-5)
    assert count(optimized, nn.BatchNorm2d) == left
    return optimized


@torch.inference_mode()
def test_a_normalisation_after_a_separable_convolution():
    model = prepared(nn.Sequential(Separable(), nn.BatchNorm2d(4), nn.ReLU()))
    optimized = assert_same(model, 0)
    assert optimized[0][1].relu
    assert type(optimized[0]) is Separable


@torch.inference_mode()
def test_a_sum_after_a_sequential():
    optimized = assert_same(prepared(Branch()), 0)
    assert count(optimized, FusedConv2d) == 3
    # The Sequentials that are whole are called, so hooks on them work.
    seen = []
    for layers in (optimized.first, optimized.block[0]):
        layers.register_forward_hook(lambda layers, *_: seen.append(layers))
    optimized(torch.randn(1, 4, 5, 5))
    assert seen == [optimized.first, optimized.block[0]]


@torch.inference_mode()
def test_a_hook_of_a_sequential_still_sees_its_result():
    model = prepared(nn.Sequential(Separable(), nn.BatchNorm2d(4)))
    model[0].register_forward_hook(lambda module, inputs, result: 3 * result)
    assert_same(model, 1)


@torch.inference_mode()
def test_a_forward_of_its_own_is_kept():
    layers = Doubled(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
    assert_same(prepared(nn.Sequential(layers, nn.BatchNorm2d(4))), 1)


@torch.inference_mode()
def test_a_sequential_that_is_called_twice():
    assert_same(prepared(CalledTwice(Separable())), 2)


@torch.inference_mode()
@pytest.mark.parametrize("inner_first", [True, False])
def test_a_sequential_that_an_untraceable_forward_calls_too(inner_first):
    shared = Separable()
    model = nn.ModuleList([Untraceable(shared), nn.Sequential(shared, nn.BatchNorm2d(4))])
    parts = list(model if inner_first else reversed(model))
    assert_same(prepared(nn.Sequential(*parts)), 1)


@torch.inference_mode()
def test_an_empty_sequential():
    assert_same(prepared(nn.Sequential(nn.Conv2d(4, 4, 1), nn.Sequential(), nn.BatchNorm2d(4))), 1)


def timms(activation):
    """Returns a normalisation that optimize takes for timm's, which need not be installed."""

    class BatchNormAct2d(nn.BatchNorm2d):
        def __init__(self):
            super().__init__(4)
            self.drop, self.act = nn.Identity(), activation

        def forward(self, x):
            return self.act(self.drop(super().forward(x)))

    BatchNormAct2d.__module__ = "timm.layers.norm_act"
    BatchNormAct2d.__qualname__ = "BatchNormAct2d"
    return BatchNormAct2d()


@torch.inference_mode()
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.SiLU(), nn.Identity(), nn.Hardswish()])
def test_timms_normalisation_with_an_activation(activation):
    model = prepared(nn.Sequential(nn.Conv2d(4, 4, 3), timms(activation), nn.ReLU6()))
    optimized = assert_same(model, 0)
    assert optimized[0].relu is isinstance(activation, nn.ReLU)


@torch.inference_mode()
def test_timms_normalisation_with_dropout_is_left():
    norm = timms(nn.ReLU())
    norm.drop = nn.Dropout2d()
    assert_same(prepared(nn.Sequential(nn.Conv2d(4, 4, 3), norm)), 1)
