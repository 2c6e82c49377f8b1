"""load_weights: common files, and files that must not be trusted."""

import pickle
import re

import pytest
import torch

from atrousx.models import deeplab_v3, load_weights
from tests.models import torchvision_reference as reference


def build(layout="torchvision", **options):
    """Returns a model of zeros, because random values would only take time."""
    with torch.device("meta"):
        model = deeplab_v3(layout=layout, **options)
    model = model.to_empty(device="cpu")
    for value in model.state_dict().values():
        value.zero_()
    return model


@pytest.fixture(scope="module")
def published():
    """A state_dict as published by torchvision, with the auxiliary classifier."""
    return reference.random_state(build(aux=True))


@pytest.fixture(scope="module")
def imagenet(published):
    """A state_dict of torchvision's resnet50: the backbone's keys without prefix, and ``fc``."""
    backbone = {
        key.removeprefix("backbone."): value
        for key, value in published.items()
        if key.startswith("backbone.")
    }
    return backbone | {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}


def assert_holds(model, state):
    own = model.state_dict()
    assert all(torch.equal(own[key], value) for key, value in state.items())


def test_a_published_file(published, tmp_path):
    torch.save(published, tmp_path / "deeplabv3_resnet50_coco.pth")
    model = build(aux=True)
    report = load_weights(model, tmp_path / "deeplabv3_resnet50_coco.pth")
    assert_holds(model, published)
    assert report.source == "deeplab_v3"
    assert report.loaded == tuple(published)
    assert report.missing == report.left_over == ()
    assert str(report) == f"{len(published)} tensors loaded, recognised as deeplab_v3"


def test_a_training_checkpoint_is_unwrapped(published, tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": published, "epoch": 3}, path)
    model = build(aux=True)
    load_weights(model, str(path))
    assert_holds(model, published)


def test_a_model_without_aux_leaves_it_over(published):
    model = build()
    report = load_weights(model, published)
    assert len(report.left_over) == 8
    assert all(key.startswith("aux_classifier.") for key in report.left_over)
    assert not report.missing
    assert "not in the model, ignored: aux_classifier.0.weight, " in str(report)


def test_weights_without_aux_leave_it_missing(published):
    model = build(aux=True)
    main = {key: value for key, value in published.items() if not key.startswith("aux")}
    report = load_weights(model, main)
    assert_holds(model, main)
    assert not model.aux_classifier[4].weight.any()
    assert len(report.missing) == 8
    assert "left as they were: aux_classifier.0.weight, " in str(report)
    assert str(report).endswith(" and 4 more")


@pytest.mark.parametrize("layout", ["paper", "torchvision"])
def test_an_imagenet_resnet_fills_the_backbone(imagenet, layout):
    model = build(layout)
    report = load_weights(model, imagenet)
    assert_holds(model.backbone, {k: v for k, v in imagenet.items() if not k.startswith("fc.")})
    assert report.source == "resnet"
    assert report.left_over == ("fc.weight", "fc.bias")
    assert report.missing == tuple(k for k in model.state_dict() if k.startswith("classifier."))
    assert "not in the model, ignored: fc.weight, fc.bias" in str(report)


def test_torchvisions_own_resnet_is_understood():
    weights = reference.segmentation().deeplabv3.resnet50(weights=None).state_dict()
    model = build()
    report = load_weights(model, weights)
    assert (report.source, report.left_over) == ("resnet", ("fc.weight", "fc.bias"))
    assert_holds(model.backbone, {key: weights[key] for key in model.backbone.state_dict()})


def test_counters_may_be_absent_and_values_are_converted(published):
    model = build(aux=True).double()
    half = {k: v.half() for k, v in published.items() if not k.endswith("num_batches_tracked")}
    report = load_weights(model, half)
    assert all(key.endswith("num_batches_tracked") for key in report.missing)
    assert model.backbone.conv1.weight.dtype == torch.float64
    assert_holds(model, {k: v.double() for k, v in half.items()})


def test_the_papers_layout_loads_its_own():
    saved, model = build("paper", num_classes=3), build("paper", num_classes=3)
    saved.classifier[1].bias.data.fill_(5)
    assert load_weights(model, saved.state_dict()).source == "deeplab_v3"
    assert model.classifier[1].bias.tolist() == [5, 5, 5]


def test_a_shape_that_differs_is_named_and_nothing_is_loaded(published):
    model = build(num_classes=19, aux=True)
    message = re.escape(
        "classifier.4.weight has shape (21, 256, 1, 1) in the weights "
        "and (19, 256, 1, 1) in the model"
    )
    with pytest.raises(ValueError, match=message):
        load_weights(model, published)
    assert not any(value.any() for value in model.state_dict().values())


def test_another_depth_does_not_fit(imagenet, published):
    deeper = build(backbone="resnet101", aux=True)
    with pytest.raises(ValueError, match=r"\(resnet\) do not fit .* lacks backbone\.layer3\.6\."):
        load_weights(deeper, imagenet)
    with pytest.raises(ValueError, match=r"\(deeplab_v3\) do not fit .* lacks backbone\.layer3\.6"):
        load_weights(deeper, published)
    with pytest.raises(ValueError, match=r"no place for backbone\.layer3\.6\.conv1\.weight, "):
        load_weights(build(aux=True), deeper.state_dict())


def test_the_source_can_be_insisted_on(imagenet, published):
    load_weights(build(), imagenet, source="resnet")
    with pytest.raises(ValueError, match="the weights are not those of source='deeplab_v3': conv1"):
        load_weights(build(), imagenet, source="deeplab_v3")
    with pytest.raises(ValueError, match=r"not those of any layout known here: features\.0"):
        load_weights(build(), {"features.0.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="source must be 'auto' or one of deeplab_v2_base, "):
        load_weights(build(), published, source="caffe")


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (exec, (f"open({str(self.marker)!r}, 'w').close()",))


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_an_untrusted_file_is_executed(tmp_path, zipped, published):
    path, marker = tmp_path / "weights.pth", tmp_path / "executed"
    content = {"backbone.conv1.weight": torch.zeros(1), "payload": Payload(marker)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"weights\.pth .* could execute code"):
        load_weights(build(), path)
    assert not marker.exists()
    # Shows that the payload really executes code.
    torch.load(path, weights_only=False)
    assert marker.exists()


# PyTorch warns of the protocol before it rejects the content.
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_bare_pickle_is_not_executed_either(tmp_path):
    path, marker = tmp_path / "weights.pth", tmp_path / "executed"
    path.write_bytes(pickle.dumps(Payload(marker)))
    with pytest.raises(ValueError, match="could execute code"):
        load_weights(build(), path)
    assert not marker.exists()


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no weights file .*nowhere\.pth"):
        load_weights(build(), tmp_path / "nowhere.pth")
    with pytest.raises(ValueError, match=r"is not a file, and a folder without a \.safetensors"):
        load_weights(build(), tmp_path)


@pytest.mark.parametrize("content", ["empty", "text", "cut"])
def test_a_file_that_is_not_weights(tmp_path, content):
    path = tmp_path / "weights.pth"
    torch.save({"conv1.weight": torch.zeros(1000)}, path)
    whole = path.read_bytes()
    path.write_bytes(
        {"empty": b"", "text": b"<html>404</html>", "cut": whole[: len(whole) // 2]}[content]
    )
    with pytest.raises(ValueError, match=r"weights\.pth"):
        load_weights(build(), path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, not a state_dict"),
        ({"epoch": 3}, "must hold tensors by name, got int at 'epoch'"),
        ({"model": 3}, "got int at 'model'"),
    ],
)
def test_a_file_of_something_else(tmp_path, content, message):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=message):
        load_weights(build(), tmp_path / "weights.pth")


def test_a_list_is_not_a_state_dict():
    with pytest.raises(TypeError, match="must be a path or a state_dict, got list"):
        load_weights(build(), [torch.zeros(1)])
