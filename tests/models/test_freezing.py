"""freeze_bn: no training mode, gradient or batch changes a frozen normalisation."""

import copy
import io

import pytest
import torch
from torch import nn

from atrousx.models import freeze_bn


@pytest.fixture
def network():
    made = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4)))
    for layer in (made[1], made[2][0]):
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
    return made


def test_train_does_not_thaw(network):
    images = torch.randn(2, 3, 5, 5)
    expected = network.eval()(images)
    state = copy.deepcopy(network.state_dict())
    assert freeze_bn(network) is network
    result = network.train()(images)
    assert torch.equal(result, expected)
    result.sum().backward()
    for key, value in network.state_dict().items():
        assert torch.equal(value, state[key])
    assert list(network.state_dict()) == list(state)
    assert network.training
    assert network[0].training
    assert network[0].weight.grad is not None
    assert [p.requires_grad for p in network[1].parameters()] == [False, False]


def test_one_layer_itself_copies_and_files(network):
    layer = freeze_bn(network[1])
    assert layer is network[1]
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(layer), torch.load(buffer, weights_only=False)):
        assert not twin.train().training


def test_synchronised_normalisation_leaves_frozen_layers_alone(network):
    freeze_bn(network[2])
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(network).train()
    assert isinstance(converted[1], nn.SyncBatchNorm)
    frozen = converted[2][0]
    assert not frozen.training
    assert not isinstance(frozen, nn.SyncBatchNorm)
    assert not any(p.requires_grad for p in frozen.parameters())
    images = torch.randn(2, 4, 5, 5)
    assert torch.equal(frozen(images), frozen.eval()(images))


def test_a_frozen_layer_without_running_statistics_uses_those_of_the_batch():
    layer = nn.BatchNorm2d(4, track_running_stats=False)
    images = torch.randn(2, 4, 5, 5)
    expected = layer.eval()(images)
    assert torch.equal(freeze_bn(layer).train()(images), expected)


def test_rejects():
    with pytest.raises(TypeError, match=r"module must be a torch\.nn\.Module, got int"):
        freeze_bn(3)
