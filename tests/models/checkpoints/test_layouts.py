"""load_weights: layouts of other libraries, built here with random weights."""

import pytest
import torch
from torch import nn

from atrousx import AtrousConv2d
from atrousx.models import deeplab_v1, deeplab_v2, deeplab_v3, from_vgg16, load_weights
from atrousx.models.backbones.resnet import ResNet, plan_stages
from atrousx.models.deeplab_v2 import DeepLabV2
from atrousx.models.heads import SummedBranches
from tests.models.checkpoints.published import (
    coco_initialisation,
    port_with_base,
    port_with_scale,
)

CLASSES = 3
UNITS = (1, 2, 1, 1)


def small_v2(classes=CLASSES):
    """Returns deeplab_v2 on a ResNet with five units."""
    backbone = ResNet(plan_stages(UNITS, 8), caffe=True)
    branches = [AtrousConv2d(2048, classes, 3, padding=r, dilation=r) for r in (6, 12, 18, 24)]
    return DeepLabV2(backbone, SummedBranches(branches), classes, True)


def zeroed(model):
    for value in model.state_dict().values():
        value.zero_()
    return model


def assert_same(model, expected):
    for key, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


@pytest.mark.parametrize(
    ("layout", "source"),
    [
        (port_with_base, "deeplab_v2_base"),
        (lambda model: port_with_base(model, ""), "deeplab_v2_base"),
        (port_with_scale, "deeplab_v2_scale"),
        (lambda model: port_with_scale(model, ""), "deeplab_v2_scale"),
        (nn.Module.state_dict, "deeplab_v2"),
    ],
)
def test_second_papers_ports(layout, source, tmp_path):
    trained, model = small_v2(), zeroed(small_v2())
    torch.save(layout(trained), tmp_path / "port.pth")
    report = load_weights(model, tmp_path / "port.pth")
    assert_same(model, trained)
    assert report.source == source
    assert report.left_over == ()
    assert all(key.endswith("num_batches_tracked") for key in report.missing)


def test_the_coco_initialisation_fills_the_backbone():
    trained, model = small_v2(), zeroed(small_v2())
    report = load_weights(model, coco_initialisation(trained))
    assert report.source == "deeplab_v2_base"
    assert report.left_over == ("fc.weight", "fc.bias")
    assert report.missing == tuple(k for k in model.state_dict() if k.startswith("classifier."))
    assert_same(model.backbone, trained.backbone)
    broken = coco_initialisation(trained)
    del broken["layer3.block2.reduce.conv.weight"]
    with pytest.raises(ValueError, match=r"it lacks backbone\.layer2\.1\.conv1\.weight"):
        load_weights(model, broken)


def test_other_classes_keep_the_last_layer_only_when_asked():
    coco, model = small_v2(classes=91), zeroed(small_v2())
    message = r"branches\.0\.weight has shape \(91, 2048.*other_classes=True leaves this layer"
    with pytest.raises(ValueError, match=message):
        load_weights(model, port_with_base(coco, ""))
    assert not any(value.any() for value in model.state_dict().values())
    report = load_weights(model, port_with_base(coco, ""), other_classes=True)
    layers = [f"classifier.branches.{i}.{n}" for i in range(4) for n in ("weight", "bias")]
    assert sorted(report.missing) == sorted(layers)
    assert not any(model.state_dict()[key].any() for key in layers)
    assert torch.equal(model.backbone.conv1.weight, coco.backbone.conv1.weight)
    # With the same number of classes the last layer is loaded, whether other_classes is set or not.
    same = small_v2()
    assert load_weights(model, same.state_dict(), other_classes=True).missing == ()
    assert_same(model, same)


def test_other_classes_excuses_nothing_else():
    model, broken = small_v2(), small_v2(classes=5).state_dict()
    broken["backbone.layer1.0.conv1.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"layer1\.0\.conv1\.weight has shape \(1,\)"):
        load_weights(model, broken, other_classes=True)
    del broken["backbone.layer1.0.conv1.weight"]
    with pytest.raises(ValueError, match=r"it lacks backbone\.layer1\.0\.conv1\.weight"):
        load_weights(model, broken, other_classes=True)


def test_model_state_checkpoints(tmp_path):
    trained = deeplab_v3(num_classes=CLASSES, layout="torchvision")
    state = {
        "module." + key.replace("classifier.", "classifier.classifier."): value
        for key, value in trained.state_dict().items()
    }
    path = tmp_path / "checkpoint.pth"
    torch.save({"cur_itrs": 3, "best_score": 0.5, "model_state": state}, path)
    model = deeplab_v3(num_classes=CLASSES, layout="torchvision")
    assert load_weights(model, path).source == "deeplab_v3"
    assert_same(model, trained)
    other = deeplab_v3(num_classes=5, layout="torchvision", aux=True)
    report = load_weights(other, path, other_classes=True)
    lacking = [key for key in report.missing if not key.startswith("aux_classifier.")]
    assert lacking == ["classifier.4.weight", "classifier.4.bias"]


@pytest.mark.parametrize(
    "build",
    [
        lambda: deeplab_v1(num_classes=2, multi_scale_features=True),
        lambda: deeplab_v2(num_classes=2, backbone="vgg16", head="large_fov"),
        lambda: deeplab_v3(num_classes=2, head="cascade", blocks=5),
    ],
)
def test_our_own(build):
    trained, model = build(), build()
    report = load_weights(model, trained.state_dict())
    assert_same(model, trained)
    assert report.missing == report.left_over == ()
    assert report.source == f"deeplab_v{type(model).__name__[-1]}"


def test_imagenets_vgg16():
    state = {f"features.{k}": v for k, v in deeplab_v1().backbone.features.state_dict().items()}
    for index, shape in {0: (4096, 25088), 3: (4096, 4096), 6: (1000, 4096)}.items():
        state[f"classifier.{index}.weight"] = torch.arange(shape[0])[:, None].expand(shape).float()
        state[f"classifier.{index}.bias"] = torch.zeros(shape[0])
    model = deeplab_v1(num_classes=2)
    report = load_weights(model, state)
    assert report.source == "vgg16"
    assert report.missing == ("classifier.6.weight", "classifier.6.bias")
    expected = from_vgg16(state, num_classes=2)
    for key in report.loaded:
        assert torch.equal(model.state_dict()[key], expected.state_dict()[key])
    assert not model.preprocess.bgr
    second = deeplab_v2(num_classes=2, backbone="vgg16", head="large_fov")
    report = load_weights(second, state)
    assert all(key.startswith("classifier.") for key in report.missing)
    assert all(key.startswith("fc.") for key in report.left_over)
    assert torch.equal(second.backbone.features[28].weight, state["features.28.weight"])
    assert not second.preprocess.bgr


def test_imagenets_resnet_brings_its_preprocessing():
    trained, model = small_v2(), small_v2()
    assert model.preprocess.bgr
    assert load_weights(model, trained.backbone.state_dict()).source == "resnet"
    assert not model.preprocess.bgr


def test_imagenets_resnet_in_the_cascade():
    with torch.device("meta"):
        network = deeplab_v3(head="cascade", blocks=5)
    network = zeroed(network.to_empty(device="cpu"))
    state = {
        key.removeprefix("backbone."): torch.ones_like(value)
        for key, value in network.state_dict().items()
        if key.startswith("backbone.") and "layer5" not in key
    }
    report = load_weights(network, state)
    assert {key.split(".")[1] for key in report.missing if "backbone" in key} == {"layer5"}
    assert network.backbone.layer4[0].conv1.weight.all()
