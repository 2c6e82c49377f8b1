"""set_output_stride: the same weights, denser features that contain the sparser ones."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from atrousx.models import deeplab_v3, set_output_stride
from atrousx.models.backbones.geometry import apply_plan, plan_output_stride
from atrousx.models.backbones.resnet import ResNet, plan_stages


def small(output_stride, stages=4, **options):
    """Returns a backbone with one or two units per stage."""
    torch.manual_seed(0)
    units = (1, 1, 2, 2, 2, 2, 2)[:stages]
    return ResNet(plan_stages(units, output_stride, **options)).eval().double()


def set_backbone(backbone, output_stride):
    plan, _ = plan_output_stride(backbone, output_stride)
    apply_plan(plan)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("sparse", "dense", "extent", "options"),
    [
        (16, 8, (64, 48), {"multi_grid": (2, 3)}),
        (16, 8, (33, 49), {"first_unit_keeps_rate": True}),
        (32, 8, (65, 33), {}),
    ],
)
def test_dense_features_contain_the_sparse(sparse, dense, extent, options):
    backbone, image = small(sparse, **options), torch.randn(1, 3, *extent).double()
    expected = backbone(image)["out"]
    set_backbone(backbone, dense)
    step = sparse // dense
    found = backbone(image)["out"]
    assert found.shape[-1] > expected.shape[-1]
    assert torch.allclose(found[..., ::step, ::step], expected, rtol=1e-9, atol=1e-9)
    set_backbone(backbone, sparse)
    assert torch.equal(backbone(image)["out"], expected)


@torch.inference_mode()
def test_the_cascade_obeys_the_law_too():
    backbone, image = small(256, stages=7), torch.randn(1, 3, 129, 256).double()
    expected = backbone(image)["out"]
    assert expected.shape[-2:] == (1, 1)
    set_backbone(backbone, 64)
    found = backbone(image)["out"]
    assert found.shape[-2:] == (3, 4)
    assert torch.allclose(found[..., ::4, ::4], expected, rtol=1e-9, atol=1e-9)


def rates(model: Any):
    aspp = [branch[0].dilation[0] for branch in model.classifier[0].convs[1:-1]]
    units = [[unit.rate for unit in stage] for stage in model.backbone.stages()]
    return units[2:], aspp


def test_rates_double_and_weights_stay():
    with torch.device("meta"):
        model = deeplab_v3()
    weights = {name: id(parameter) for name, parameter in model.named_parameters()}
    assert set_output_stride(model, 8) is model
    assert rates(model) == ([[1, 2, 2, 2, 2, 2], [4, 8, 16]], [12, 24, 36])
    aspp = model.classifier[0].convs[2][0]
    assert aspp.padding == aspp.dilation == (24, 24)
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == weights
    set_output_stride(model, 16)
    assert rates(model) == ([[1] * 6, [2, 4, 8]], [6, 12, 18])


def test_torchvisions_model_becomes_the_one_built_so():
    with torch.device("meta"):
        trained, built = (deeplab_v3(layout="torchvision", output_stride=s) for s in (16, 8))
    set_output_stride(trained, 8)
    assert repr(trained) == repr(built)
    set_output_stride(built, 16)
    assert rates(built) == ([[1] * 6, [1, 2, 2]], [6, 12, 18])


def test_rejects():
    with torch.device("meta"):
        model = deeplab_v3(output_stride=32)
    with pytest.raises(TypeError, match="model must be a DeepLabV3 or a DeepLabV3Plus, got ReLU"):
        set_output_stride(nn.ReLU(), 8)
    with pytest.raises(ValueError, match="output_stride must be one of 8, 16, 32 with 4 blocks"):
        set_output_stride(model, 64)
    odd = copy.deepcopy(set_output_stride(model, 8))
    odd.classifier[0].convs[1][0].dilation = (13, 13)
    before = rates(odd)
    with pytest.raises(ValueError, match="rate 13 times 1/2, which is not whole"):
        set_output_stride(odd, 16)
    assert rates(odd) == before
