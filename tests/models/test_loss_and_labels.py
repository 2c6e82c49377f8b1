"""The models' loss and labels. They never store upsampled logits."""

from collections import OrderedDict

import pytest
import torch
from torch.nn import functional as F

from atrousx.models import deeplab_v1, deeplab_v2, deeplab_v3

IGNORED = 255
CLASSES = 3


def labels_of(size):
    target = torch.randint(CLASSES, (2, *size))
    target[0, :5] = IGNORED
    return target


def upsampled(logits, size, align_corners):
    return F.interpolate(logits, size, mode="bilinear", align_corners=align_corners)


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    return {
        "v1": deeplab_v1(CLASSES, width=0.1),
        "v2": deeplab_v2(CLASSES, "vgg16", "large_fov", width=0.1),
        "v3": deeplab_v3(CLASSES, aux=True, width=0.1),
    }


@pytest.mark.parametrize(
    ("name", "outputs"),
    [
        ("v1", {"out": 1.0}),
        ("v2", {"out": 1.0, "scale_1": 1.0, "scale_0.75": 1.0, "scale_0.5": 1.0}),
        ("v3", {"out": 1.0, "aux": 0.5}),
    ],
)
def test_loss_is_the_papers(networks, name, outputs):
    network = networks[name].eval()  # without dropout, for the comparison
    images, target = torch.randn(2, 3, 33, 41), labels_of((33, 41))
    coarse = network.coarse_logits(images)
    assert list(coarse) == list(outputs)
    expected = torch.zeros(())
    for key, factor in outputs.items():
        logits, labels = coarse[key], target
        if name == "v3":
            logits = upsampled(logits, target.shape[1:], False)
        else:  # every 8th pixel, or the pixel nearest to a smaller scale's
            rows = torch.linspace(0, 32, logits.shape[2]).add(0.5).floor().long()
            columns = torch.linspace(0, 40, logits.shape[3]).add(0.5).floor().long()
            labels = target[:, rows][:, :, columns]
        expected = expected + factor * F.cross_entropy(logits, labels, ignore_index=IGNORED)
    torch.testing.assert_close(network.loss(images, target), expected)
    torch.testing.assert_close(network.loss(coarse, target), expected)


def test_loss_of_either_kind_and_of_upsampled_logits(networks):
    v1, v3 = networks["v1"], networks["v3"]
    logits, target = OrderedDict(out=torch.randn(2, CLASSES, 5, 6)), labels_of((33, 41))
    weight = torch.rand(CLASSES)
    options = {"ignore_index": IGNORED, "label_smoothing": 0.1}
    full = F.cross_entropy(upsampled(logits["out"], (33, 41), True), target, weight, **options)
    actual = v1.loss(logits, target, weight, downsample_labels=False, label_smoothing=0.1)
    torch.testing.assert_close(actual, full)
    large = OrderedDict(out=upsampled(logits["out"], (33, 41), False))
    torch.testing.assert_close(v3.loss(large, target), v3.loss(logits, target))
    # The pixels at 1/2 + 8 k, or the middle of an even number of pixels.
    small = F.cross_entropy(logits["out"], target[:, 3::6][:, :5][:, :, 3::7], ignore_index=IGNORED)
    actual = v3.loss(logits, F.pad(target, (0, 1), value=0)[:, :30], downsample_labels=True)
    torch.testing.assert_close(actual, small)


@pytest.mark.parametrize("name", ["v1", "v2", "v3"])
def test_a_call_with_a_target_returns_the_loss(networks, name):
    network = networks[name].eval()
    images, target = torch.randn(2, 3, 33, 41), labels_of((33, 41))
    called = network(images, target, label_smoothing=0.1)
    assert torch.equal(called, network.loss(images, target, label_smoothing=0.1))
    with pytest.raises(TypeError, match="label_smoothing: needs a target"):
        network(images, label_smoothing=0.1)


@pytest.mark.parametrize("weight", [None, torch.tensor([0.5, 2.0, 1.0])])
@pytest.mark.parametrize("name", ["v1", "v2", "v3"])
def test_micro_batches_add_up_to_the_loss_of_the_batch(networks, name, weight):
    network = networks[name].eval()  # normalisation and dropout must not see the batch
    images, target = torch.randn(3, 3, 33, 33), torch.randint(CLASSES, (3, 33, 33))
    target[0, 2:] = IGNORED
    parts = target.split(1)
    whole = network.loss(images, target, weight)
    added = sum(
        network.loss(image, labels, weight, step_targets=parts)
        for image, labels in zip(images.split(1), parts, strict=True)
    )
    torch.testing.assert_close(added, whole)
    torch.testing.assert_close(network.loss(images, target, weight, step_targets=[target]), whole)


def test_a_step_without_labelled_pixels_has_the_loss_zero(networks):
    images, target = torch.randn(1, 3, 33, 33), torch.full((1, 33, 33), IGNORED)
    assert networks["v3"].eval().loss(images, target).isnan()
    assert networks["v3"].loss(images, target, step_targets=[target]) == 0


def test_another_criterion(networks):
    images, target = torch.randn(2, 3, 33, 41), labels_of((33, 41))
    for name, size in (("v1", (5, 6)), ("v3", (33, 41))):
        seen = []

        def criterion(logits, labels, seen=seen):
            seen.append(labels.shape[1:])
            return logits.sum() * 0 + 3

        loss = networks[name].loss(images, target, criterion=criterion)
        assert seen[0] == size
        assert loss == (3 if name == "v1" else 3 + 0.5 * 3)


def test_a_step_of_training_lowers_the_loss(networks):
    network = networks["v1"].train()
    images, target = torch.randn(1, 3, 17, 17), torch.randint(CLASSES, (1, 17, 17))
    before = network.loss(images, target)
    (gradient,) = torch.autograd.grad(before, network.classifier[-1].bias)
    assert gradient.abs().max() > 0
    with pytest.raises(ValueError, match="target must have 3 dimensions"):
        network.loss(images, target[0])


@torch.inference_mode()
def test_labels_are_those_of_the_logits(networks):
    images = torch.randn(2, 3, 17, 25)
    for name in ("v1", "v3"):  # v2 upsamples like v1
        logits = networks[name].eval()(images)["out"]
        labels = networks[name].labels(images)
        assert labels.shape == (2, 17, 25)
        assert (labels == logits.argmax(1)).float().mean() > 0.99  # except for near ties
    assert networks["v3"].labels(images, (9, 7)).shape == (2, 9, 7)


@pytest.mark.parametrize("size", [(1, 1), (1, 53)])
def test_predict_at_any_size(networks, size):
    photograph = torch.randint(256, (3, *size), dtype=torch.uint8)
    for network in networks.values():
        found = network.predict(photograph, scales=(0.5, 1.75), flip=True)
        assert found.labels.shape == (1, *size)
        torch.testing.assert_close(found.probabilities.sum(1), torch.ones(1, *size))
