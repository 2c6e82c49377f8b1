"""DeepLab v3 and v3+ of public code: every key loads, and the logits are the same.

``tests/goldens/deeplab/record.py`` recorded what their code computes with the same random weights.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch

from atrousx.models import deeplab_v3plus, from_weights, load_weights
from tests.models.random_weights import image, part_of, random_weights
from tests.models.torchvision_reference import segmentation

GOLDENS = Path(__file__).parents[1] / "goldens" / "deeplab"
WHOLE = [file for file in sorted(GOLDENS.glob("*.json")) if not file.stem.startswith("timm")]
# What keys and shapes do not tell.
OPTIONS = {
    "vainf_v3_resnet50": {"output_stride": 16},
    "vainf_v3_mobilenet": {"output_stride": 8},
    "smp_v3plus_os8": {"output_stride": 8},
}


def assert_equal(result, golden):
    expected = torch.tensor(golden["values"])
    assert (part_of(result) - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("file", WHOLE, ids=lambda file: file.stem)
@torch.inference_mode()
def test_equals_public_code(file):
    golden = json.loads(file.read_text())
    weights = random_weights(golden["shapes"])
    model = from_weights(weights, **OPTIONS.get(file.stem, {})).eval()
    assert_equal(model(image())["out"], golden)


@pytest.mark.parametrize("name", ["xception65", "xception71"])
@torch.inference_mode()
def test_equals_timms_classifier(name):
    golden = json.loads((GOLDENS / f"timm_{name}.json").read_text())
    model = deeplab_v3plus(2, name, output_stride=32).eval()
    report = load_weights(model, random_weights(golden["shapes"]))
    assert report.source == "xception"
    assert report.left_over == ("fc.fc.weight", "fc.fc.bias")
    assert_equal(model.backbone(image())["out"], golden)


@torch.inference_mode()
def test_equals_torchvisions_mobilenet():
    segmentation()  # skips without torchvision
    classifier = importlib.import_module("torchvision.models").mobilenet_v2().eval()
    weights = random_weights({k: v.shape for k, v in classifier.state_dict().items()})
    classifier.load_state_dict(weights)
    model = deeplab_v3plus(2, "mobilenet_v2", output_stride=32).eval()
    assert load_weights(model, weights).source == "mobilenet_v2"
    expected = classifier.features[:18](image())
    found = model.backbone(image())["out"]
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_old_files_of_smp_number_the_parts():
    shapes = json.loads((GOLDENS / "smp_v3.json").read_text())["shapes"]
    new = random_weights(shapes)
    old = dict(new)
    for number, name in enumerate(("aspp", "conv", "bn")):
        old = {k.replace(f"decoder.{name}.", f"decoder.{number}."): v for k, v in old.items()}
    assert old.keys() != new.keys()
    one, other = (from_weights(weights).state_dict() for weights in (new, old))
    assert all(torch.equal(one[key], other[key]) for key in one)
