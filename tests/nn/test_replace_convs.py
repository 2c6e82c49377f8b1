"""replace_convs on common PyTorch models."""

import copy

import pytest
import torch
from torch import nn

from atrousx import AtrousConv2d, replace_convs


class Doubled(nn.Conv2d):
    def forward(self, input):
        return 2 * super().forward(input)


def model():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=2, dilation=2),
        nn.BatchNorm2d(4),
        nn.ModuleDict({"inner": nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())})["inner"],
        nn.ConvTranspose2d(4, 4, 2, stride=2),
        Doubled(4, 2, 1),
    )


def test_every_conv_is_swapped_and_nothing_else():
    net = model().eval()
    reference = copy.deepcopy(net)
    parameters = dict(net.named_parameters())
    assert replace_convs(net) is net
    assert [type(m) for m in net] == [
        AtrousConv2d,
        nn.BatchNorm2d,
        nn.Sequential,
        nn.ConvTranspose2d,
        Doubled,
    ]
    assert type(net[2][0]) is AtrousConv2d
    assert {name: id(p) for name, p in net.named_parameters()} == {
        name: id(p) for name, p in parameters.items()
    }
    assert not any(m.training for m in net.modules())
    input = torch.randn(2, 3, 8, 9)
    torch.testing.assert_close(net(input), reference(input))


def test_an_optimizer_made_before_trains_the_model_after():
    net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False))
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    replace_convs(net)
    before = net[0].weight.detach().clone()
    net(torch.ones(1, 1, 1, 1)).sum().backward()
    optimizer.step()
    assert net[0].weight.item() == pytest.approx(before.item() - 1.0)


def test_a_conv_itself_is_returned_replaced():
    conv = nn.Conv2d(3, 4, 3)
    layer = replace_convs(conv)
    assert type(layer) is AtrousConv2d
    assert layer.weight is conv.weight


def test_twice_changes_nothing_more():
    net = replace_convs(model())
    layers = list(net.modules())
    assert list(replace_convs(net).modules()) == layers
    layer = AtrousConv2d(1, 1, 1)
    assert replace_convs(layer) is layer


def test_a_shared_conv_stays_shared():
    conv = nn.Conv2d(2, 2, 1)
    net = nn.Sequential(conv, nn.ReLU(), conv, nn.Sequential(conv))
    replace_convs(net)
    assert type(net[0]) is AtrousConv2d
    assert net[0] is net[2] is net[3][0]


def test_an_empty_place_stays_empty():
    net = nn.Sequential(nn.Conv2d(1, 1, 1))
    net.shortcut = None
    net.register_module("projection", None)
    assert replace_convs(net).projection is None


def test_what_cannot_be_served_is_left_alone():
    parametrised = nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 1, 1))
    net = nn.Sequential(nn.LazyConv2d(1, 1), parametrised)
    layers = list(net)
    replace_convs(net)
    assert list(net) == layers


def test_only_modules():
    with pytest.raises(TypeError, match=r"module must be a torch\.nn\.Module, got list"):
        replace_convs([nn.Conv2d(1, 1, 1)])
