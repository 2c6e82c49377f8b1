"""Recomputed activations: the same bits, each convolution once, less memory."""

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from atrousx.models import deeplab_v1, deeplab_v2, deeplab_v3, freeze_bn, recompute_activations


def network(recompute: bool, dtype=torch.float32):
    torch.manual_seed(0)
    model = deeplab_v3(num_classes=3, width=0.1, aux=True).to(dtype)
    return recompute_activations(model, recompute)


def batch(dtype=torch.float32):
    random = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, 41, 33, generator=random).to(dtype)
    return images, torch.randint(3, (2, 41, 33), generator=random)


def trained(model, steps=2, dtype=torch.float32):
    """Returns loss, gradients and buffers after some steps."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(*batch(dtype))
        loss.backward()
        optimizer.step()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return [loss.detach(), *gradients, *(buffer.clone() for buffer in model.buffers())]


def assert_same_bits(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_gradients_and_statistics_are_the_same_bits(dtype):
    runs = [trained(network(recompute, dtype), dtype=dtype) for recompute in (False, True)]
    assert_same_bits(*runs)


def test_with_autocast():
    runs = []
    for recompute in (False, True):
        with torch.autocast("cpu", torch.bfloat16):
            runs.append(trained(network(recompute)))
    assert_same_bits(*runs)


def test_with_frozen_normalisation():
    runs = [trained(freeze_bn(network(recompute))) for recompute in (False, True)]
    assert_same_bits(*runs)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_the_layers_keep_their_momentum_and_count(momentum):
    model = network(True)
    layers = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for layer in layers:
        layer.momentum = momentum
    trained(model, steps=3)
    assert {layer.momentum for layer in layers} == {momentum}
    assert {int(layer.num_batches_tracked) for layer in layers} == {3}


class Counter(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.counts = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name()
        self.counts[name] = self.counts.get(name, 0) + 1
        return function(*args, **(kwargs or {}))


def counted(recompute):
    model = network(recompute)
    with Counter() as counter:
        model(*batch()).backward()
    return counter.counts


def test_convolutions_run_once_and_normalisation_twice():
    kept, again = counted(False), counted(True)
    stages = network(True).backbone.stages()
    layers = sum(isinstance(m, nn.BatchNorm2d) for stage in stages for m in stage.modules())
    for name in ("aten::convolution", "atrousx::atrous_conv2d", "aten::convolution_backward"):
        assert again.get(name, 0) == kept.get(name, 0)
    norm = "aten::native_batch_norm"
    assert again[norm] == kept[norm] + layers


class Allocations(TorchDispatchMode):
    """Knows the memory of all results that still exist."""

    def __init__(self):
        super().__init__()
        self.storages = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.storages[storage.data_ptr()] = (StorageWeakRef(storage), storage.nbytes())
        return result

    def alive(self):
        return sum(size for storage, size in self.storages.values() if not storage.expired())


def kept_bytes(recompute):
    """Returns the memory that the backward pass still needs after the forward pass."""
    model = network(recompute)
    with Allocations() as allocations:
        loss = model(*batch())
    kept = allocations.alive()
    loss.backward()
    return kept


def test_less_is_kept():
    assert kept_bytes(True) < 0.75 * kept_bytes(False)


def test_evaluation_does_not_change():
    images, _ = batch()
    plain, recomputing = network(False).eval(), network(True).eval()
    assert torch.equal(plain(images)["out"], recomputing(images)["out"])


def test_it_can_be_switched_off():
    model = recompute_activations(recompute_activations(network(True)), False)
    assert not model.backbone.recompute
    assert_same_bits(trained(model), trained(network(False)))


def test_the_state_dict_does_not_change():
    assert network(True).state_dict().keys() == network(False).state_dict().keys()


def test_v2_has_a_resnet_too():
    assert recompute_activations(deeplab_v2(num_classes=2, width=0.05)).backbone.recompute


def test_wrong_arguments_are_named():
    with pytest.raises(TypeError, match=r"module must be a torch\.nn\.Module, got int"):
        recompute_activations(3)
    with pytest.raises(ValueError, match="module must contain a ResNet of atrousx"):
        recompute_activations(deeplab_v1(num_classes=2, width=0.05))
