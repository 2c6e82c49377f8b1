"""DeepLab v3+: its parameters, strides and forms, and its use; public code has its own tests."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import atrousx
from atrousx.models import (
    DeepLabV3Plus,
    deeplab_v3,
    deeplab_v3plus,
    from_weights,
    load_weights,
    recompute_activations,
    set_output_stride,
    to_torch,
)
from tests.models.random_weights import random_weights

BACKBONES = ("resnet50", "xception65", "xception71", "mobilenet_v2")
FORMS = [
    *((backbone, "paper") for backbone in BACKBONES),
    ("resnet101", "mmseg"),
    ("resnet50", "smp"),
    ("resnet50", "vainf"),
    ("mobilenet_v2", "vainf"),
]


def build(backbone="resnet50", layout="paper", **options):
    """Returns a narrow network whose values keep their size."""
    model = deeplab_v3plus(3, backbone, layout=layout, width=0.1, **options)
    state = {key: value.shape for key, value in model.state_dict().items()}
    model.load_state_dict(random_weights(state))
    return model.eval()


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        # As in the public code: tests/goldens/deeplab.
        ({"backbone": "resnet50", "layout": "vainf"}, 39_761_845),
        ({"backbone": "resnet50", "layout": "smp"}, 26_682_725),
        ({"backbone": "xception65"}, 41_055_413),
    ],
)
def test_number_of_parameters(options, parameters):
    with torch.device("meta"):
        model = deeplab_v3plus(21, **options)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize(("backbone", "layout"), FORMS)
@torch.inference_mode()
def test_strides_of_the_features(backbone, layout, stride):
    model = build(backbone, layout, output_stride=stride)
    features = model.backbone(torch.rand(1, 3, 64, 96))
    assert features["low"].shape[-2:] == (16, 24)
    assert features["out"].shape[-2:] == (64 // stride, 96 // stride)
    rates = (12, 24, 36) if layout == "smp" else [16 * rate // stride for rate in (6, 12, 18)]
    assert model.classifier.aspp.atrous_rates == tuple(rates)


@pytest.mark.parametrize("size", [(1, 1), (33, 47), (64, 41)])
@pytest.mark.parametrize(("backbone", "layout"), FORMS)
@torch.inference_mode()
def test_any_size_and_an_empty_batch(backbone, layout, size):
    if size == (1, 1) and (backbone, layout) == ("mobilenet_v2", "vainf"):
        pytest.skip("its first layer has no padding")
    model = build(backbone, layout)
    logits = model(torch.rand(2, 3, *size))["out"]
    assert logits.shape == (2, 3, *size)
    assert logits.isfinite().all()
    assert model(torch.rand(0, 3, *size))["out"].shape == (0, 3, *size)


@pytest.mark.parametrize("backbone", BACKBONES)
@torch.inference_mode()
def test_denser_features_contain_the_sparser(backbone):
    model = build(backbone, output_stride=16).double()
    image = torch.rand(1, 3, 65, 97).double()
    sparse = model.backbone(image)
    rates = model.classifier.aspp.atrous_rates
    dense = set_output_stride(model, 8).backbone(image)
    assert torch.equal(dense["low"], sparse["low"])
    assert torch.allclose(dense["out"][..., ::2, ::2], sparse["out"], rtol=1e-9, atol=1e-9)
    assert model.classifier.aspp.atrous_rates == tuple(2 * rate for rate in rates)
    set_output_stride(model, 16)
    assert torch.equal(model.backbone(image)["out"], sparse["out"])


@pytest.mark.parametrize(("backbone", "layout"), FORMS)
@torch.inference_mode()
def test_optimized_and_exported_models_agree(backbone, layout):
    model, image = build(backbone, layout), torch.randn(2, 3, 65, 49)
    expected = model(image)["out"]
    bound = 1e-4 * expected.abs().max()
    for other in (atrousx.optimize(copy.deepcopy(model)), to_torch(model)):
        assert (other(image)["out"] - expected).abs().max() <= bound
    channels_last = image.contiguous(memory_format=torch.channels_last)
    assert (model(channels_last)["out"] - expected).abs().max() <= bound


@pytest.mark.parametrize(("backbone", "layout"), FORMS)
def test_trains_every_parameter(backbone, layout):
    has_aux = backbone.startswith("resnet")
    model = build(backbone, layout, aux=has_aux).train()
    images, target = torch.randn(2, 3, 33, 49), torch.randint(3, (2, 33, 49))
    loss = model(images, target)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    grouped = [p for group in model.parameter_groups() for p in group["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in model.parameters()}
    logits = model.eval()(images)
    assert list(logits) == (["out", "aux"] if has_aux else ["out"])


def test_recomputed_activations_give_the_same_bits():
    model = build(aux=True).train()
    other = recompute_activations(copy.deepcopy(model))
    images, target = torch.randn(2, 3, 33, 33), torch.randint(3, (2, 33, 33))
    for network in (model, other):
        torch.manual_seed(1)
        network(images, target).backward()
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one.grad, two.grad)


@torch.inference_mode()
def test_labels_are_those_of_the_logits():
    for layout in ("paper", "smp"):  # corners aligned or not
        model, images = build(layout=layout), torch.randn(2, 3, 33, 49)
        assert torch.equal(model.labels(images), model(images)["out"].argmax(1))
        assert model.labels(images, size=(20, 31)).shape == (2, 20, 31)


@torch.inference_mode()
def test_predicts_photographs():
    model = build("xception65")
    photograph = torch.randint(256, (3, 40, 50), dtype=torch.uint8)
    alone = model.predict(photograph)
    assert alone.labels.shape == (1, 40, 50)
    expected = model(model.preprocess(photograph[None]))["out"].softmax(1)
    assert torch.allclose(alone.probabilities, expected, atol=1e-5)
    assert model.preprocess(photograph).abs().max() <= 1
    several = model.predict(photograph, (0.75, 1.0), flip=True, tile=None)
    assert several.probabilities.sum(1).allclose(torch.ones(1, 40, 50))


@pytest.mark.parametrize(("backbone", "layout"), FORMS)
def test_its_own_weights_say_what_it_is(backbone, layout):
    model = build(backbone, layout)
    loaded = from_weights(model.state_dict())
    assert isinstance(loaded, DeepLabV3Plus)
    own, other = model.state_dict(), loaded.state_dict()
    assert own.keys() == other.keys()
    assert all(torch.equal(own[key], other[key]) for key in own)


def test_separable_or_plain_convolutions():
    plain = build(separable=False)
    assert not any(m.groups > 1 for m in plain.modules() if isinstance(m, nn.Conv2d))
    separable = build(layout="vainf", separable=True)
    assert sum(m.groups > 1 for m in separable.modules() if isinstance(m, nn.Conv2d)) == 4
    loaded = from_weights(separable.state_dict())
    assert sum(m.groups > 1 for m in loaded.modules() if isinstance(m, nn.Conv2d)) == 4


def test_weights_of_another_version_are_named():
    model = build()
    with pytest.raises(ValueError, match=r"the weights are those of deeplab_v3\(num_classes=3"):
        load_weights(model, deeplab_v3(3, width=0.1).state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"backbone": "vgg16"}, "backbone must be one of resnet50, .*, got 'vgg16'"),
        ({"layout": "caffe"}, "layout must be one of paper, vainf, smp, mmseg, got 'caffe'"),
        (
            {"layout": "vainf", "backbone": "xception65"},
            "backbone must be one of resnet50, resnet101, mobilenet_v2 with layout='vainf'",
        ),
        ({"layout": "smp", "backbone": "mobilenet_v2"}, "with layout='smp', got 'mobilenet_v2'"),
        ({"output_stride": 4}, "output_stride must be one of 8, 16, 32 .*, got 4"),
        ({"multi_grid": (1, 2, 4), "layout": "smp"}, "multi_grid belongs to layout='paper'"),
        ({"multi_grid": (1, 2)}, "multi_grid must hold a positive rate for each"),
        ({"multi_grid": ()}, "multi_grid must hold a positive rate for each"),
        ({"aux": True, "backbone": "xception65"}, "aux needs a ResNet, got backbone='xception65'"),
        ({"width": -1.0}, "width must be a positive factor, got -1.0"),
    ],
)
def test_rejects(options, message):
    with pytest.raises(ValueError, match=message):
        deeplab_v3plus(**options)
