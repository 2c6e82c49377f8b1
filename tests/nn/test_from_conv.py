"""AtrousConv2d.from_conv: what it shares, what it copies, and what it rejects."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from atrousx import AtrousConv2d


def test_the_parameters_are_the_same_objects():
    conv = nn.Conv2d(4, 6, (3, 1), stride=2, padding=(2, 0), dilation=2, groups=2)
    layer = AtrousConv2d.from_conv(conv)
    assert type(layer) is AtrousConv2d
    assert repr(layer) == repr(conv).replace("Conv2d", "AtrousConv2d")
    assert layer.weight is conv.weight
    assert layer.bias is conv.bias
    input = torch.randn(2, 4, 9, 8)
    torch.testing.assert_close(layer(input), conv(input))
    layer(input).sum().backward()
    assert conv.weight.grad is layer.weight.grad is not None


def test_frozen_parameters_and_mode_are_kept():
    conv = nn.Conv2d(2, 2, 1, bias=False).eval().requires_grad_(False)
    layer = AtrousConv2d.from_conv(conv)
    assert not layer.training
    assert not layer.weight.requires_grad
    assert layer.bias is None


def test_an_assignment_to_one_does_not_reach_the_other():
    conv = nn.Conv2d(2, 2, 1)
    layer = AtrousConv2d.from_conv(conv)
    before = conv.weight
    layer.weight = nn.Parameter(torch.zeros(2, 2, 1, 1))
    layer.train(False)
    assert conv.weight is before
    assert conv.training


def test_hooks_run_and_their_handles_remove_them():
    conv = nn.Conv2d(1, 1, 1)
    calls = []
    handles = [
        conv.register_forward_pre_hook(lambda *_: calls.append("before")),
        conv.register_forward_hook(lambda *_: calls.append("after")),
        conv.register_full_backward_hook(lambda *_: calls.append("backward")),
    ]
    layer = AtrousConv2d.from_conv(conv)
    layer(torch.ones(1, 1, 1, 1, requires_grad=True)).sum().backward()
    assert calls == ["before", "after", "backward"]
    for handle in handles:
        handle.remove()
    layer(torch.ones(1, 1, 1, 1, requires_grad=True)).sum().backward()
    assert len(calls) == 3


def test_a_compiled_conv_gives_a_layer_of_its_own():
    conv = nn.Conv2d(1, 1, 1)
    conv.compile(backend="eager")
    layer = AtrousConv2d.from_conv(conv)
    assert layer._compiled_call_impl is None
    assert conv._compiled_call_impl is not None


def test_an_atrous_conv_and_a_subclass_of_it():
    class Named(AtrousConv2d):
        pass

    layer = AtrousConv2d(1, 1, 1)
    assert Named.from_conv(layer).weight is layer.weight
    assert type(Named.from_conv(layer)) is Named


class Scaled(nn.Conv2d):
    def forward(self, input):
        return 2 * super().forward(input)


def patched():
    conv = nn.Conv2d(1, 1, 1)
    conv.forward = lambda input: input
    return conv


def weight_normed():
    # The older function, without parametrisations; saved models still use it.
    with pytest.warns(FutureWarning, match="weight_norm"):
        return nn.utils.weight_norm(nn.Conv2d(1, 1, 1))


def quantised():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.nn.quantized.Conv2d(1, 1, 1)


def pruned():
    conv = nn.Conv2d(1, 1, 3)
    prune.l1_unstructured(conv, "weight", amount=0.5)
    return conv


REFUSED = {
    "transposed": (
        lambda: nn.ConvTranspose2d(1, 1, 1),
        TypeError,
        r"got torch\.nn\.modules\.conv\.ConvTranspose2d",
    ),
    "1-d": (lambda: nn.Conv1d(1, 1, 1), TypeError, r"got torch\.nn\.modules\.conv\.Conv1d"),
    "3-d": (lambda: nn.Conv3d(1, 1, 1), TypeError, r"got torch\.nn\.modules\.conv\.Conv3d"),
    "quantised": (
        quantised,
        TypeError,
        r"got torch\.ao\.nn\.quantized\..*\.Conv2d",
    ),
    "subclass": (lambda: Scaled(1, 1, 1), TypeError, r"got .*\.Scaled: "),
    "not a layer": (lambda: torch.ones(1), TypeError, r"got torch\.Tensor"),
    "own forward": (patched, TypeError, "its own forward"),
    "lazy": (lambda: nn.LazyConv2d(1, 1), ValueError, "call it once"),
    "parametrised": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 1, 1)),
        ValueError,
        "ParametrizedConv2d that computes it before each call",
    ),
    "weight norm": (weight_normed, ValueError, "hold its weight as a parameter"),
    "pruned": (pruned, ValueError, "hold its weight as a parameter"),
    "complex": (
        lambda: nn.Conv2d(1, 1, 1, dtype=torch.complex64),
        TypeError,
        "got Parameter of complex64",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case):
    make, error, message = REFUSED[case]
    conv = make()
    with pytest.raises(error, match=message):
        AtrousConv2d.from_conv(conv)


def test_a_lazy_conv_is_served_once_it_knows_its_input():
    conv = nn.LazyConv2d(2, 3)
    conv(torch.ones(1, 5, 4, 4))
    assert AtrousConv2d.from_conv(conv).in_channels == 5
