"""The three networks, their losses, labels and CRFs: the same on a GPU as on the CPU."""

import copy

import pytest
import torch

from atrousx import optimize
from atrousx.models import deeplab_v1, deeplab_v2, deeplab_v3

pytestmark = [
    pytest.mark.slow,
    pytest.mark.parametrize(
        "device",
        [
            pytest.param("cuda", marks=pytest.mark.cuda),
            pytest.param("emulated", marks=pytest.mark.emulated),
        ],
        indirect=True,
    ),
]
# A few pixels at the networks' output stride. More would not test more, and the device in host
# memory is slow.
BUILDS = {
    "v1": (lambda: deeplab_v1(num_classes=4), 9, 11),
    "v2": (lambda: deeplab_v2(4, multi_scale=False), 9, 7),
    "v2, VGG-16": (lambda: deeplab_v2(4, "vgg16", "aspp_s", multi_scale=False), 7, 9),
    "v3": (lambda: deeplab_v3(num_classes=4, aux=True), 17, 19),
}


@pytest.fixture(scope="module")
def made(request):
    """A network in evaluation mode and a photograph. Tests that change the network take a copy."""
    build, height, width = BUILDS[request.param]
    torch.manual_seed(0)
    return build().eval(), torch.randint(256, (1, 3, height, width), dtype=torch.uint8)


def close(actual, expected, share):
    return (actual.cpu().float() - expected).abs().max() <= share * expected.abs().max()


@torch.inference_mode()
@pytest.mark.parametrize("made", BUILDS, indirect=True)
def test_prediction(made, device):
    network, photograph = made
    expected = network.predict(photograph)
    actual = copy.deepcopy(network).to(device).predict(photograph)
    assert actual.labels.device.type == device.type
    assert close(actual.probabilities, expected.probabilities, 1e-3)
    assert (actual.labels.cpu() == expected.labels).double().mean() > 0.95
    assert (actual.refined is None) == (expected.refined is None) == (network.crf is None)
    if expected.refined is not None:
        assert (actual.refined.cpu() == expected.refined).double().mean() > 0.95


@torch.inference_mode()
@pytest.mark.parametrize("made", ["v3"], indirect=True)
def test_labels_of_an_optimized_network(made, device):
    network, photograph = made
    images = network.preprocess(photograph)
    moved = optimize(copy.deepcopy(network).to(device))
    there = moved.preprocess(photograph.to(device))
    assert close(moved.coarse_logits(there)["out"], network.coarse_logits(images)["out"], 1e-3)
    assert (moved.labels(there).cpu() == network.labels(images)).double().mean() > 0.95


@pytest.mark.parametrize("made", ["v1", "v3"], indirect=True)
def test_training_step_under_autocast(made, device):
    """Gradients are about as close to float32's as under the CPU's autocast."""
    network, photograph = made
    target = torch.randint(4, (1, *photograph.shape[2:]))

    def step(place, autocast):
        moved = copy.deepcopy(network).to(place)
        images = moved.preprocess(photograph.to(place))
        with torch.autocast(place.type, torch.bfloat16, enabled=autocast):
            loss = moved.loss(images, target.to(place))
        gradients = torch.autograd.grad(loss, list(moved.classifier.parameters()))
        return [t.cpu().float() for t in (loss, *gradients)]

    cpu = torch.device("cpu")
    runs = zip(step(cpu, False), step(cpu, True), step(device, True), strict=True)
    for exact, on_cpu, actual in runs:
        allowed = 2 * (on_cpu - exact).norm() + 0.02 * exact.norm()
        assert (actual - exact).norm() <= allowed
