"""DeepLab v2: summed branches, three scales, frozen normalisation, the paper's learning rates."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from atrousx import AtrousConv2d, DenseCRF
from atrousx.models import deeplab_v2
from atrousx.nn.frozen_batch_norm import FrozenBatchNorm2d

RATES = {"aspp_l": [6, 12, 18, 24], "aspp_s": [2, 4, 8, 12], "large_fov": [12]}


def on_meta(*arguments, **options):
    with torch.device("meta"):
        return deeplab_v2(*arguments, **options)


@pytest.fixture(scope="module")
def resnet():
    """A shared model. Tests that change it take a copy."""
    torch.manual_seed(0)
    return deeplab_v2(num_classes=5)


@pytest.fixture(scope="module")
def vgg():
    torch.manual_seed(0)
    return deeplab_v2(num_classes=5, backbone="vgg16", head="aspp_s")


def count(network):
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("head", RATES)
def test_parameters_and_rates_on_resnet101(head):
    network = on_meta(head=head)
    # ResNet-101 without its classifier and, per branch, a biased 3x3 with 2048 input channels.
    assert count(network) == 42_500_160 + len(RATES[head]) * (2048 * 9 * 21 + 21)
    assert [b.dilation[0] for b in network.classifier.branches] == RATES[head]
    assert all(b.bias is not None for b in network.classifier.branches)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in network.classifier.modules())


@pytest.mark.parametrize("head", RATES)
def test_parameters_and_rates_on_vgg16(head):
    network = on_meta(21, "vgg16", head)
    branch = (512 * 9 + 1) * 1024 + (1024 + 1) * 1024 + (1024 + 1) * 21
    assert count(network) == 14_714_688 + len(RATES[head]) * branch
    assert [b[0].dilation[0] for b in network.classifier.branches] == RATES[head]


def test_resnet_is_the_original():
    network = on_meta().backbone
    assert network.maxpool.ceil_mode
    assert {unit.rate for unit in network.layer3} == {2}
    assert {unit.rate for unit in network.layer4} == {4}
    assert network.layer2[0].conv1.stride == network.layer2[0].downsample[0].stride == (2, 2)
    assert network.layer2[0].conv2.stride == (1, 1)
    assert network.layer3[0].stride == network.layer4[0].stride == 1
    assert {m.eps for m in network.modules() if isinstance(m, FrozenBatchNorm2d)} == {1e-5}


@pytest.mark.parametrize("backbone", ["resnet101", "vgg16"])
@pytest.mark.parametrize(("extent", "features"), [(321, (41, 31, 21)), (320, (41, 31, 21))])
def test_sizes_of_the_scales(backbone, extent, features):
    network = on_meta(backbone=backbone)
    image = torch.empty(2, 3, extent, extent, device="meta")
    logits = network.train()(image)
    assert list(logits) == ["out", "scale_1", "scale_0.75", "scale_0.5"]
    sizes = [features[0], *features]
    assert [tuple(v.shape) for v in logits.values()] == [(2, 21, s, s) for s in sizes]
    assert {k: v.shape for k, v in network.eval()(image).items()} == {
        "out": (2, 21, extent, extent)
    }


def test_one_scale():
    network = on_meta(multi_scale=False, backbone="vgg16").train()
    logits = network(torch.empty(1, 3, 65, 49, device="meta"))
    assert {k: v.shape for k, v in logits.items()} == {"out": (1, 21, 9, 7)}


@torch.inference_mode()
def test_branches_are_summed(resnet, vgg):
    features = torch.randn(1, 2048, 7, 9)
    expected = sum(
        F.conv2d(features, b.weight, b.bias, padding=r, dilation=r)
        for b, r in zip(resnet.classifier.branches, RATES["aspp_l"], strict=True)
    )
    assert torch.allclose(resnet.classifier(features), expected, atol=1e-5)
    features = torch.randn(1, 512, 7, 9)
    head = copy.deepcopy(vgg.classifier).eval()
    expected = sum(branch(features) for branch in head.branches)
    assert torch.allclose(head(features), expected, atol=1e-5)


@torch.inference_mode()
def test_scales_are_fused_by_the_maximum(vgg):
    network = copy.deepcopy(vgg).eval()
    image = torch.randn(1, 3, 33, 17)
    scores = [network.scores(image)]
    for size in ((25, 13), (17, 9)):
        smaller = F.interpolate(image, size, mode="bilinear", align_corners=True)
        scores.append(network.scores(smaller))
    size = scores[0].shape[-2:]
    same = [F.interpolate(s, size, mode="bilinear", align_corners=True) for s in scores]
    fused = torch.stack(same).amax(0)
    expected = F.interpolate(fused, (33, 17), mode="bilinear", align_corners=True)
    found = network(image)["out"]
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_normalisation_is_frozen_in_training(resnet):
    network = copy.deepcopy(resnet).train()
    network.scales = ()
    before = {k: v.clone() for k, v in network.state_dict().items() if "running" in k}
    network(torch.randn(1, 3, 17, 17))["out"].square().mean().backward()
    after = network.state_dict()
    assert before
    assert all(torch.equal(after[key], value) for key, value in before.items())
    for name, parameter in network.named_parameters():
        frozen = ".bn" in name or "downsample.1" in name
        assert parameter.requires_grad == (parameter.grad is not None) == (not frozen), name


@pytest.mark.slow
def test_training_lowers_the_loss(vgg):
    network = copy.deepcopy(vgg).train()
    optimizer = torch.optim.SGD(network.parameter_groups(lr=1e-3), momentum=0.9)
    image, target = torch.randn(1, 3, 17, 17), torch.randint(5, (1, 17, 17))
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = sum(
            F.cross_entropy(v, F.interpolate(target[None].float(), v.shape[-2:]).long()[0])
            for v in network(image).values()
        )
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_predict_takes_the_maximum_and_refines(vgg):
    photograph = torch.randint(256, (1, 3, 17, 25), dtype=torch.uint8)
    network = copy.deepcopy(vgg).eval()
    network.scales = ()
    found = network.predict(photograph, scales=(1, 1.5), crf=False)
    with torch.inference_mode():
        mean = torch.tensor([104.008, 116.669, 122.675]).view(3, 1, 1)
        images = photograph.float().flip(1) - mean
        larger = F.interpolate(images, (26, 38), mode="bilinear")
        looks = [
            network(images)["out"],
            F.interpolate(network(larger)["out"], (17, 25), mode="bilinear"),
        ]
        logits = torch.maximum(*looks)
    assert (found.probabilities - logits.softmax(1)).abs().max() < 1e-4
    refined = network.predict(photograph).refined
    crf = DenseCRF(
        5,
        bilateral_weight=4.0,
        bilateral_sigma_xy=67.0,
        bilateral_sigma_rgb=3.0,
        gaussian_weight=3.0,
        gaussian_sigma_xy=3.0,
    )
    assert torch.equal(refined, crf(looks[0], photograph).argmax(1))


def test_every_convolution_is_an_atrous_conv2d(resnet, vgg):
    for network in (resnet, vgg):
        convolutions = [m for m in network.modules() if isinstance(m, nn.modules.conv._ConvNd)]
        assert {type(m) for m in convolutions} == {AtrousConv2d}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"backbone": "resnet50"}, "backbone must be one of resnet101, vgg16, got 'resnet50'"),
        ({"head": "aspp"}, "head must be one of aspp_l, aspp_s, large_fov, got 'aspp'"),
    ],
)
def test_rejects(arguments, message):
    with pytest.raises(ValueError, match=message):
        deeplab_v2(**arguments)
