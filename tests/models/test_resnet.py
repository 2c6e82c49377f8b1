"""The stages at which strides end and dilation begins."""

import pytest
import torch

from atrousx.models.backbones.resnet import ResNet, plan_stages


def test_an_ordinary_resnet():
    assert plan_stages((3, 4, 6, 3), 32) == [
        (1, (1, 1, 1)),
        (2, (1, 1, 1, 1)),
        (2, (1, 1, 1, 1, 1, 1)),
        (2, (1, 1, 1)),
    ]


def test_the_papers_rates_at_output_stride_16_and_8():
    assert plan_stages((3, 4, 6, 3), 16, (1, 2, 4))[2:] == [(2, (1,) * 6), (1, (2, 4, 8))]
    assert plan_stages((3, 4, 6, 3), 8, (1, 2, 4))[2:] == [(1, (2,) * 6), (1, (4, 8, 16))]


def test_torchvisions_first_units_keep_the_rate_before():
    assert plan_stages((3, 4, 6, 3), 8, first_unit_keeps_rate=True)[2:] == [
        (1, (1, 2, 2, 2, 2, 2)),
        (1, (2, 4, 4)),
    ]


def test_multi_grid_has_a_rate_for_each_unit():
    with pytest.raises(ValueError, match=r"each of the last stage's 3 units, got \(1, 2\)"):
        plan_stages((3, 4, 6, 3), 16, (1, 2))


@pytest.mark.parametrize(("output_stride", "size"), [(32, 3), (16, 6), (8, 11)])
def test_the_output_stride_is_the_features(output_stride, size):
    backbone = ResNet(plan_stages((1, 1, 1, 1), output_stride), aux=True).eval()
    features = backbone(torch.zeros(1, 3, 85, 85))
    assert list(features) == ["aux", "out"]
    assert features["out"].shape == (1, 2048, size, size)
    assert features["aux"].shape[1] == 1024
