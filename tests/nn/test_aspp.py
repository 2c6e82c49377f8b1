"""ASPP against its equation, its published key layout and torchvision's."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from atrousx import ASPP, AtrousConv2d

RATES = (2, 4, 5)


def small(**options):
    torch.manual_seed(3)
    return ASPP(8, RATES, out_channels=4, **options)


def written_out(state, input):
    """Evaluates the layer from its state_dict, one line of the equation at a time."""

    def unit(name, bn, tensor, **options):
        tensor = F.conv2d(tensor, state[f"{name}.weight"], **options)
        statistics = (state[f"{bn}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        return F.relu(F.batch_norm(tensor, *statistics))

    branches = [unit("convs.0.0", "convs.0.1", input)]
    for index, rate in enumerate(RATES, 1):
        name = f"convs.{index}"
        branches.append(unit(f"{name}.0", f"{name}.1", input, padding=rate, dilation=rate))
    pooled = unit("convs.4.1", "convs.4.2", input.mean((2, 3), keepdim=True))
    branches.append(pooled.expand(-1, -1, *input.shape[2:]))
    return unit("project.0", "project.1", torch.cat(branches, 1))


def test_equals_its_equation(device):
    layer = small().eval().to(device)
    for module in layer.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    input = torch.randn(2, 8, 9, 7, device=device)
    torch.testing.assert_close(
        layer(input), written_out(layer.state_dict(), input), rtol=1e-4, atol=1e-5
    )


def test_the_papers_numbers_by_default():
    layer = ASPP(2048)
    assert [layer.convs[i][0].dilation[0] for i in (1, 2, 3)] == [6, 12, 18]
    assert [layer.convs[i][0].padding[0] for i in (1, 2, 3)] == [6, 12, 18]
    assert layer.project[0].in_channels == 5 * 256
    assert layer.project[3].p == 0.5
    assert all(type(m) is AtrousConv2d for m in layer.modules() if isinstance(m, nn.Conv2d))


def test_state_dict_has_torchvisions_keys():
    weights = {key for key in small().state_dict() if key.endswith("weight")}
    assert weights == {f"convs.{i}.{j}.weight" for i in range(4) for j in range(2)} | {
        "convs.4.1.weight",
        "convs.4.2.weight",
        "project.0.weight",
        "project.1.weight",
    }


@pytest.mark.parametrize("rates", [(), (6, 0)])
def test_rates_must_be_positive(rates):
    with pytest.raises(ValueError, match="atrous_rates must be positive, at least one, got"):
        ASPP(8, rates)


def test_one_image_in_training_is_normalised_by_the_running_statistics():
    layer = small().train()
    pooling = layer.convs[-1]
    pooling[2].running_mean.normal_()
    before = copy.deepcopy(pooling.state_dict())
    image = torch.randn(1, 8, 5, 5)
    found = pooling(image)
    assert all(torch.equal(pooling.state_dict()[k], v) for k, v in before.items())
    assert torch.equal(found, pooling.eval()(image))
    assert layer(image).isfinite().all()


def test_dropout_acts_in_training_only():
    input = torch.randn(2, 8, 9, 9)
    layer = small(dropout=0.9)
    assert (layer(input) == 0).float().mean() > 0.8
    assert torch.equal(layer.eval()(input), copy.deepcopy(layer)(input))


def test_an_empty_batch():
    assert small().eval()(torch.empty(0, 8, 5, 5)).shape == (0, 4, 5, 5)


def test_channels_last_and_autocast(device):
    layer = small().eval().to(device)
    input = torch.randn(2, 8, 9, 7, device=device).to(memory_format=torch.channels_last)
    expected = layer(input)
    assert expected.is_contiguous(memory_format=torch.channels_last)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        result = layer(input)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.float(), expected, rtol=0.05, atol=0.05)


def test_autocast_and_channels_last_reach_the_projection():
    layer = small().eval()
    seen = []
    layer.project.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs))
    input = torch.randn(2, 8, 9, 7).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(input)
    assert seen[0].dtype == torch.bfloat16
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def test_gradients_reach_every_parameter():
    layer = small().train()
    layer(torch.randn(2, 8, 9, 7)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())


def test_compile_and_export():
    layer = small().eval()
    input = torch.randn(2, 8, 9, 7)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(input), layer(input))
    sizes = {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    exported = torch.export.export(layer, (input,), dynamic_shapes=(sizes,)).module()
    larger = torch.randn(3, 8, 12, 10)
    torch.testing.assert_close(exported(larger), layer(larger))


def test_evaluation_projects_the_pooled_branch_once_unless_somebody_watches():
    layer = small().eval()
    input = torch.randn(2, 8, 9, 7)
    sizes = []
    layer.project[1].register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape))
    expected = layer.project(torch.cat([branch(input) for branch in layer.convs], 1))
    torch.testing.assert_close(layer(input), expected, rtol=1e-5, atol=1e-6)
    watched = []
    for part in (layer.convs[-1], layer.project[0]):
        part.register_forward_hook(lambda _, args, result: watched.append(result.shape[2:]))
        assert torch.equal(layer(input), expected)
    assert watched == [(9, 7)] * 3
    assert set(sizes) == {(2, 4, 9, 7)}
