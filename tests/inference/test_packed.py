"""Optimized layers use their current weights, however these are changed."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import atrousx
from atrousx.inference import packed as packed_module


@pytest.fixture(autouse=True)
def _native():
    before = atrousx.get_backend()
    atrousx.set_backend("native")
    yield
    atrousx.set_backend(before)


# Filters that are packed, and filters that are also transformed.
LAYERS = {
    "packed": (lambda: nn.Conv2d(20, 24, 3, padding=2, dilation=2), (1, 20, 9, 8)),
    "transformed": (lambda: nn.Conv2d(32, 64, 3, padding=1), (1, 32, 16, 18)),
    "half": (lambda: nn.Conv2d(32, 64, 3, padding=1).bfloat16(), (1, 32, 32, 36)),
}


def layer_and_input(name="packed"):
    build, shape = LAYERS[name]
    conv = build()
    layer = atrousx.optimize(nn.Sequential(conv).eval())[0]
    return layer, torch.randn(shape, dtype=conv.weight.dtype)


def expected(layer, x):
    """Returns PyTorch's result with the layer's current weight."""
    return F.conv2d(x, layer.weight, layer.bias, 1, layer.padding, layer.dilation)


def assert_follows(layer, x):
    result = layer(x)
    error = 0.05 if x.dtype == torch.bfloat16 else 1e-4
    torch.testing.assert_close(result, expected(layer, x), rtol=error, atol=error)


def numpy_of(tensor):
    bits = tensor.detach().view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor.detach()
    return bits.numpy()


def by_data(layer):
    layer.weight.data.mul_(2)


def by_numpy(layer):
    numpy_of(layer.weight)[::2] = 0


def by_parameters(layer):
    next(layer.parameters()).data.neg_()


def by_state_dict(layer):
    layer.state_dict()["weight"].data.mul_(-3)


def by_name(layer):
    layer.get_parameter("weight").data[5] = 0


def by_dictionary(layer):
    layer._parameters["weight"].data[:, 3] = 0


def by_storage(layer):
    memory = layer.weight.untyped_storage()
    memory[: len(memory) // 2] = 0


def by_dlpack(layer):
    torch.utils.dlpack.from_dlpack(layer.weight.detach()).data.mul_(2)


def by_swap(layer):
    first, second = layer.weight.data[0].clone(), layer.weight.data[1].clone()
    layer.weight.data[0], layer.weight.data[1] = second, first


def in_inference_mode(layer):
    with torch.inference_mode():
        layer.weight.mul_(2)


def openly(layer):
    with torch.no_grad():
        layer.weight.mul_(2)


def by_another_parameter(layer):
    layer.weight = nn.Parameter(2 * layer.weight.detach(), requires_grad=False)


def by_loading(layer):
    layer.load_state_dict({k: 2 * v for k, v in layer.state_dict().items()})


CHANGES = [
    by_data,
    by_numpy,
    by_parameters,
    by_state_dict,
    by_name,
    by_dictionary,
    by_storage,
    by_dlpack,
    by_swap,
    in_inference_mode,
    openly,
    by_another_parameter,
    by_loading,
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", LAYERS)
def test_results_follow_a_change(name, change):
    layer, x = layer_and_input(name)
    with torch.no_grad():
        before = [layer(x) for _ in range(3)][-1]
        change(layer)
        assert not torch.equal(layer(x), before)
        assert_follows(layer, x)
        # Changes the weight again, after the layer trusts it again.
        layer(x)
        change(layer)
        assert_follows(layer, x)


HOLDERS = {
    "the parameter": (lambda layer: layer.weight, lambda held: held.data.mul_(2)),
    "an array": (lambda layer: numpy_of(layer.weight), lambda held: held.fill(0)),
    "a view": (lambda layer: layer.weight.data[3:], lambda held: held.mul_(2)),
    "memory": (lambda layer: layer.weight.untyped_storage(), lambda held: held.fill_(0)),
    "a state": (lambda layer: layer.state_dict(), lambda held: held["weight"].data.mul_(2)),
    "a capsule": (
        lambda layer: layer.weight.__dlpack__(),
        lambda held: torch.utils.dlpack.from_dlpack(_Capsule(held)).mul_(2),
    ),
}


class _Capsule:
    def __init__(self, capsule):
        self.capsule = capsule

    def __dlpack__(self, **_):
        return self.capsule

    def __dlpack_device__(self):
        return (1, 0)


@pytest.mark.parametrize("holder", HOLDERS)
def test_results_follow_what_somebody_holds(holder):
    hold, change = HOLDERS[holder]
    layer, x = layer_and_input("transformed")
    with torch.no_grad():
        layer(x)
        held = hold(layer)
        for _ in range(3):
            layer(x)  # the layer must not trust its weight meanwhile
        change(held)
        assert_follows(layer, x)


@pytest.mark.parametrize("assign", [False, True])
def test_results_follow_an_array_that_was_loaded(assign):
    layer, x = layer_and_input("transformed")
    arrays = {k: v.detach().numpy().copy() for k, v in layer.state_dict().items()}
    layer.load_state_dict({k: torch.from_numpy(v) for k, v in arrays.items()}, assign=assign)
    with torch.no_grad():
        for _ in range(3):
            before = layer(x)
        arrays["weight"] *= 2
        assert torch.equal(layer(x), before) is not assign
        assert_follows(layer, x)


def test_results_follow_weights_made_in_inference_mode():
    with torch.inference_mode():
        layer, x = layer_and_input("transformed")
        for _ in range(3):
            layer(x)
        weight = layer.weight
        for _ in range(2):
            weight.mul_(2)
            assert_follows(layer, x)
            layer(x)


def test_results_follow_shared_memory():
    layer, x = layer_and_input()
    layer.share_memory()
    assert layer.weight.is_shared()
    with torch.no_grad():
        for _ in range(3):
            layer(x)
        # Another process would write like this: through memory that this module does not know.
        layer.__dict__["_parameters"]["weight"].data.mul_(2)
        assert_follows(layer, x)


def test_results_follow_every_form():
    layer, x = layer_and_input("transformed")
    small = x[:, :, :3, :3]
    with torch.no_grad():
        layer(x), layer(small)
        by_data(layer)
        for _ in range(3):
            layer(x)
        assert_follows(layer, small)
        assert_follows(layer, x)


@pytest.mark.parametrize("change", [lambda w: w.data.mul_(2), lambda w: w.numpy().fill(0.5)])
def test_pyramids_follow_their_weights(change):
    model = atrousx.ASPP(32, (2, 4), 64).eval()
    fast, x = atrousx.optimize(model), torch.randn(1, 32, 17, 16)
    with torch.no_grad():
        for _ in range(3):
            before = fast(x)
        for branch in range(3):
            change(fast.weights[branch])
            after = fast(x)
            assert not torch.equal(after, before)
            torch.testing.assert_close(after, copy.deepcopy(fast)(x))
            before = fast(x)


@pytest.fixture
def compared(monkeypatch):
    """Counts how often a weight was read to detect a change."""
    calls = []
    real = packed_module._fingerprint
    monkeypatch.setattr(packed_module, "_fingerprint", lambda w: calls.append(1) or real(w))
    return calls


def again(layer):
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "itself": lambda layer: layer,
    "a copy": copy.deepcopy,
    "pickled": lambda layer: pickle.loads(pickle.dumps(layer)),
    "from a file": again,
    "of another type": lambda layer: layer.double(),
}


@pytest.mark.parametrize("name", COPIES)
def test_a_weight_that_nobody_else_has_is_not_read_again(name, compared):
    layer, x = layer_and_input()
    layer = COPIES[name](layer)
    x = x.to(layer.weight.dtype)
    with torch.no_grad():
        layer(x), layer(x)
        compared.clear()
        first = layer(x)
        assert torch.equal(layer(x), first)
        assert not compared
        # Access to the weight, or to the whole state, costs one comparison.
        layer.state_dict()
        layer(x), layer(x), layer(x)
        assert len(compared) == 1
        held = layer.weight
        layer(x), layer(x)
        assert len(compared) == 3
        del held
        layer(x), layer(x)
        assert len(compared) == 4
        assert_follows(layer, x)


def test_any_changed_bits_change_the_fingerprint():
    fingerprint = torch.ops.atrousx._fingerprint.default
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        for shape in ((8, 32, 3, 3), (1, 1, 1, 1), (3, 7, 1, 1), (64, 70, 3, 3)):
            weight = torch.randn(shape).to(dtype)
            seen = [fingerprint(weight)]
            assert fingerprint(weight.clone()) == seen[0]
            for changed in (
                -weight,
                2 * weight,
                weight.roll(1, 0) if weight.numel() > 1 else 3 * weight,
                weight + 1,
                torch.zeros_like(weight),
            ):
                seen.append(fingerprint(changed))
            for place in range(1, weight.numel(), 1 + weight.numel() // 20):
                changed = weight.clone()
                changed.view(-1)[place] *= -1
                assert fingerprint(changed) not in seen
            assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_at_any_address_has_its_fingerprint(dtype):
    fingerprint = torch.ops.atrousx._fingerprint.default
    weight = torch.randn(9, 5, 3, 3).to(dtype)
    held = torch.zeros(weight.numel() + 1, dtype=dtype)
    apart = held[1:].view(weight.shape).copy_(weight)  # two bytes further, for a half type
    assert fingerprint(apart) == fingerprint(weight)


def test_parameters_are_listed_as_usual():
    layer, x = layer_and_input()
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert layer.weight is layer.weight is next(layer.parameters())
    with pytest.raises(AttributeError, match="missing"):
        _ = layer.missing
    swapped = {"weight": torch.zeros_like(layer.weight), "bias": torch.zeros(24)}
    with torch.no_grad():
        assert not torch.func.functional_call(layer, swapped, (x,)).any()
        assert_follows(layer, x)
