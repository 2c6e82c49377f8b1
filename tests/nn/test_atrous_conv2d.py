"""AtrousConv2d against torch.nn.Conv2d: they differ only in the computation."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from atrousx import AtrousConv2d
from tests.ops.common import assert_as_accurate_as_torch, to_float64

CONFIGURATIONS = [
    {"in_channels": 3, "out_channels": 4, "kernel_size": 3},
    {"in_channels": 3, "out_channels": 4, "kernel_size": 3, "padding": 6, "dilation": 6},
    {"in_channels": 4, "out_channels": 6, "kernel_size": (3, 1), "groups": 2, "bias": False},
    {"in_channels": 3, "out_channels": 2, "kernel_size": 3, "stride": (2, 1), "padding": (1, 0)},
    {"in_channels": 3, "out_channels": 2, "kernel_size": (4, 3), "padding": "same", "dilation": 2},
    {"in_channels": 3, "out_channels": 2, "kernel_size": 2, "padding": "valid", "stride": 3},
    *(
        {
            "in_channels": 3,
            "out_channels": 2,
            "kernel_size": 3,
            "padding": (2, 1),
            "dilation": 2,
            "padding_mode": mode,
        }
        for mode in ("reflect", "replicate", "circular")
    ),
    {
        "in_channels": 3,
        "out_channels": 2,
        "kernel_size": (4, 3),
        "padding": "same",
        "dilation": 2,
        "padding_mode": "reflect",
    },
]


def twins(**configuration):
    """Returns the same layer in PyTorch and in atrousx, with the same random initialisation."""
    made = []
    for kind in (nn.Conv2d, AtrousConv2d):
        torch.manual_seed(7)
        made.append(kind(**configuration))
    return made


def test_rate_two_reads_every_other_pixel():
    layer = AtrousConv2d(1, 1, 3, dilation=2, bias=False)
    nn.init.ones_(layer.weight)
    image = torch.arange(25.0).reshape(1, 1, 5, 5)
    # 0 + 2 + 4 + 10 + 12 + 14 + 20 + 22 + 24
    assert layer(image).tolist() == [[[[108.0]]]]


def test_reflection_pads_before_convolving():
    layer = AtrousConv2d(1, 1, (1, 3), padding=(0, 1), padding_mode="reflect", bias=False)
    nn.init.ones_(layer.weight)
    # 1 2 3 is padded to 2 1 2 3 2.
    assert layer(torch.tensor([[[[1.0, 2.0, 3.0]]]])).tolist() == [[[[5.0, 6.0, 7.0]]]]


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_equals_conv2d(configuration):
    reference, layer = twins(**configuration)
    assert isinstance(layer, nn.Conv2d)
    assert repr(layer) == repr(reference).replace("Conv2d", "AtrousConv2d")
    assert list(layer.state_dict()) == list(reference.state_dict())
    for own, other in zip(layer.parameters(), reference.parameters(), strict=True):
        assert torch.equal(own, other)

    input = torch.randn(2, layer.in_channels, 9, 11, requires_grad=True)
    expected = reference(input)
    torch.testing.assert_close(layer(input), expected)
    seed = torch.randn_like(expected)
    arguments = (input, *reference.parameters())
    expected_grads = torch.autograd.grad(expected, arguments, seed)
    actual_grads = torch.autograd.grad(layer(input), (input, *layer.parameters()), seed)
    torch.testing.assert_close(actual_grads, expected_grads, rtol=1e-4, atol=1e-5)


def test_an_image_without_a_batch():
    reference, layer = twins(in_channels=3, out_channels=2, kernel_size=3)
    image = torch.randn(3, 7, 8)
    torch.testing.assert_close(layer(image), reference(image))


@pytest.mark.parametrize(
    "arguments",
    [
        {"groups": 0},
        {"groups": 2},
        {"padding": "full"},
        {"padding": "same", "stride": 2},
        {"padding_mode": "mirror"},
    ],
)
def test_the_constructor_rejects_what_conv2d_does(arguments):
    with pytest.raises(ValueError) as expected:  # noqa: PT011
        nn.Conv2d(3, 3, 3, **arguments)
    with pytest.raises(ValueError) as found:  # noqa: PT011
        AtrousConv2d(3, 3, 3, **arguments)
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.bfloat16], ids=lambda t: str(t)[6:]
)
def test_dtypes(dtype, device):
    layer = AtrousConv2d(8, 4, 3, padding=2, dilation=2, device=device, dtype=dtype)
    assert layer.weight.dtype == dtype
    input = torch.randn(2, 8, 7, 6, device=device).to(dtype)
    result = layer(input)
    assert result.dtype == dtype
    arguments = (input, layer.weight, layer.bias)
    options = {"padding": 2, "dilation": 2}
    exact = F.conv2d(*(t.double() for t in arguments), **options)
    assert_as_accurate_as_torch(result, F.conv2d(*arguments, **options), to_float64(exact))


def test_conversions_move_the_layer(device):
    layer = AtrousConv2d(8, 4, 3).to(device)
    input = torch.randn(1, 8, 6, 6, device=device)
    assert layer.double()(input.double()).dtype == torch.float64
    assert layer.half()(input.half()).dtype == torch.float16


def test_channels_last_stays_channels_last(device):
    layer = AtrousConv2d(4, 4, 3, padding=1, device=device).to(memory_format=torch.channels_last)
    input = torch.randn(2, 4, 6, 5, device=device).to(memory_format=torch.channels_last)
    assert layer(input).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(layer(input), layer(input.contiguous()))


def test_autocast_computes_in_bfloat16(device):
    layer = AtrousConv2d(4, 4, 3, device=device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        result = layer(torch.randn(1, 4, 6, 5, device=device))
    assert result.dtype == torch.bfloat16
    result.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32


def test_meta_device():
    layer = AtrousConv2d(3, 8, 3, stride=2, device="meta")
    assert layer(torch.empty(2, 3, 9, 9, device="meta")).shape == (2, 8, 4, 4)


def test_copies_and_files():
    layer = AtrousConv2d(3, 4, 3, padding=2, dilation=2, padding_mode="circular")
    input = torch.randn(1, 3, 7, 7)
    copied = copy.deepcopy(layer)
    assert copied.weight is not layer.weight
    other = AtrousConv2d(3, 4, 3, padding=2, dilation=2, padding_mode="circular")
    other.load_state_dict(layer.state_dict())
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    for twin in (copied, other, loaded, pickle.loads(pickle.dumps(layer))):
        assert type(twin) is AtrousConv2d
        assert torch.equal(twin(input), layer(input))


@pytest.mark.parametrize("configuration", [CONFIGURATIONS[1], CONFIGURATIONS[6]])
def test_compile_and_export(configuration):
    layer = AtrousConv2d(**configuration)
    input = torch.randn(2, 3, 9, 11)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(input), layer(input))
    seed = torch.randn_like(layer(input))
    torch.testing.assert_close(
        torch.autograd.grad(compiled(input), layer.parameters(), seed),
        torch.autograd.grad(layer(input), layer.parameters(), seed),
    )
    sizes = {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    exported = torch.export.export(layer, (input,), dynamic_shapes=({**sizes},)).module()
    larger = torch.randn(5, 3, 13, 12)
    torch.testing.assert_close(exported(larger), layer(larger))


def test_a_training_step_lowers_the_loss():
    torch.manual_seed(0)
    layer = AtrousConv2d(3, 2, 3, padding=4, dilation=4)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    input, target = torch.randn(4, 3, 9, 9), torch.randint(2, (4, 9, 9))
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = F.cross_entropy(layer(input), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]
