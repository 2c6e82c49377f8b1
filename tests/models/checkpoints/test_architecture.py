"""Finds the model that weights belong to, by their keys and shapes."""

import itertools
import re

import pytest
import torch

from atrousx.models import deeplab_v1, deeplab_v2, deeplab_v3, from_weights, load_weights
from atrousx.models.checkpoints.architecture import architecture_of

V3 = list(itertools.product(("resnet50", "resnet101"), ("paper", "torchvision"), (False, True)))


def on_meta(build, *arguments, **options):
    with torch.device("meta"):
        return build(*arguments, **options)


def trained(build, *arguments, **options):
    """Returns a model of ones, because random values would only take time."""
    model = on_meta(build, *arguments, **options).to_empty(device="cpu")
    for value in model.state_dict().values():
        value.fill_(1)
    return model


@pytest.mark.parametrize(
    ("build", "arguments", "unknown"),
    [
        (deeplab_v1, {"fc6": "large_fov"}, {}),
        (deeplab_v1, {"fc6": "7x7_r4", "multi_scale_features": True}, {"pooling": "2x2"}),
        *(
            (deeplab_v2, {"backbone": backbone, "head": "large_fov"}, {"multi_scale": False})
            for backbone in ("resnet101", "vgg16")
        ),
        *(
            (deeplab_v3, {"backbone": backbone, "layout": layout}, {"aux": aux})
            for backbone, layout, aux in V3
        ),
        *(
            (
                deeplab_v3,
                {"backbone": "resnet101", "layout": "paper", "head": "cascade", "blocks": blocks},
                {"multi_grid": (1, 1, 1)},
            )
            for blocks in (4, 7)
        ),
    ],
)
@pytest.mark.parametrize("classes", [1, 19])
def test_arguments_are_told(build, arguments, unknown, classes):
    weights = on_meta(build, num_classes=classes, **arguments, **unknown).state_dict()
    told = architecture_of(weights)
    assert told.version == build.__name__.removeprefix("deeplab_")
    assert told.arguments == {"num_classes": classes} | arguments
    assert told.choice is None
    assert eval(str(told), {build.__name__: lambda **given: given}) == told.arguments


def test_rates_are_not_told():
    for fc6 in ("4x4_r4", "4x4_r8"):
        told = architecture_of(on_meta(deeplab_v1, 2, fc6).state_dict())
        assert str(told) == "deeplab_v1(num_classes=2, fc6='4x4_r4' or '4x4_r8')"
    for head in ("aspp_l", "aspp_s"):
        told = architecture_of(on_meta(deeplab_v2, 2, "vgg16", head).state_dict())
        assert told.choice == ("head", ("aspp_l", "aspp_s"))


@pytest.mark.parametrize("layout", ["paper", "torchvision"])
@pytest.mark.parametrize("backbone", ["resnet50", "resnet101"])
def test_weights_of_either_layout_build_their_model(backbone, layout, tmp_path):
    saved = trained(deeplab_v3, 5, backbone, layout=layout, aux=True)
    torch.save({"model": saved.state_dict()}, tmp_path / "weights.pth")
    model = from_weights(tmp_path / "weights.pth", output_stride=16)
    built = on_meta(deeplab_v3, 5, backbone, layout=layout, output_stride=16)
    assert repr(model) == repr(built)
    assert all(value.eq(1).all() for value in model.state_dict().values())


def test_from_weights_asks_for_what_it_cannot_know():
    weights = trained(deeplab_v1, 2, "4x4_r8").state_dict()
    with pytest.raises(ValueError, match=r"fc6 must be given, .*fc6='4x4_r4' or '4x4_r8'\)"):
        from_weights(weights)
    assert from_weights(weights, fc6="4x4_r8").fc6.rate == 8
    with pytest.raises(ValueError, match=r"unknown layout\) are not those of a whole DeepLab.*: x"):
        from_weights({"x": torch.zeros(1)})


def test_an_error_names_the_model_that_the_weights_are_of():
    paper = on_meta(deeplab_v3, 5, "resnet101").state_dict()
    of_weights = "deeplab_v3(num_classes=5, backbone='resnet101', layout='paper')"
    of_model = "deeplab_v3(num_classes=5, backbone='resnet101', layout='torchvision')"
    model = on_meta(deeplab_v3, 5, "resnet101", layout="torchvision")
    wanted = f"; the weights are those of {of_weights}, the model is {of_model}"
    with pytest.raises(ValueError, match=re.escape(wanted) + "$"):
        load_weights(model, paper)
    second = on_meta(deeplab_v2, 5).state_dict()
    with pytest.raises(ValueError, match=r"no place for .*; the weights are those of deeplab_v2\("):
        load_weights(model, second)
    # A missing key does not mean another model.
    del second["backbone.layer1.0.bn1.weight"]
    with pytest.raises(ValueError, match=r"it lacks backbone\.layer1\.0\.bn1\.weight$"):
        load_weights(on_meta(deeplab_v2, 5), second)


@pytest.mark.parametrize("key", ["classifier.0.weight", "classifier.6.weight"])
def test_odd_shapes_tell_nothing(key):
    weights = on_meta(deeplab_v1, 5).state_dict() | {key: torch.zeros(())}
    with pytest.raises(ValueError, match=rf"{re.escape(key)} has shape \(\)"):
        load_weights(on_meta(deeplab_v1, 5), weights)
