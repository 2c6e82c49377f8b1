"""The code in README.md and MIGRATING.md runs unchanged, with random weights and small images."""

import importlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import atrousx
from tests.models import torchvision_reference as reference
from tests.models.checkpoints.published import coco_initialisation, port_with_base

ROOT = Path(__file__).resolve().parents[1]
HEIGHT, WIDTH = SIZE = (33, 41)
BLOCKS = [
    pytest.param(block, id=f"{page}-{index}")
    for page in ("README.md", "MIGRATING.md")
    for index, block in enumerate(
        re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    )
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files that the pages name, with random weights, in half precision to halve their size."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    third = atrousx.models.deeplab_v3(layout="torchvision", aux=True)
    second = atrousx.models.deeplab_v2()
    files = {
        "deeplabv3_resnet50_coco.pth": third.state_dict(),
        "deeplabv2_resnet101_msc-vocaug-20000.pth": port_with_base(second),
        "deeplabv1_resnet101-coco.pth": coco_initialisation(second),
    }
    for name, weights in files.items():
        torch.save({key: value.half() for key, value in weights.items()}, folder / name)
    return folder


def names(block):
    """Returns the names that the pages assume to be defined."""
    given = {
        "torch": torch,
        "np": np,
        "atrousx": atrousx,
        "photograph": torch.randint(256, (3, *SIZE), dtype=torch.uint8),
        "images": torch.randn(2, 3, *SIZE),
        "target": torch.randint(21, (2, *SIZE)),
        "image": torch.randint(256, (2, 3, *SIZE)),
        "logits": torch.randn(2, 21, *(SIZE if "crf(" in block else (5, 6))),
        "mean": torch.zeros(2, 21, *SIZE),
        "features": torch.randn(1, 5, 100),
        "values": torch.randn(1, 2, 100),
    }
    if "dcrf." in block:
        given |= {"height": HEIGHT, "width": WIDTH}
        given["image"] = np.random.default_rng(0).integers(256, size=(*SIZE, 3), dtype=np.uint8)
        given["probabilities"] = torch.randn(21, *SIZE).softmax(0).numpy()
    return given


@pytest.mark.parametrize("block", BLOCKS)
def test_code_on_a_page_runs(block, folder, monkeypatch):
    monkeypatch.chdir(folder)
    if "torchvision." in block:
        reference.segmentation()
        weights = torch.load("deeplabv3_resnet50_coco.pth", weights_only=True)
        api = importlib.import_module("torchvision.models._api")
        monkeypatch.setattr(api, "load_state_dict_from_url", lambda *a, **options: weights)
    found = names(block)
    exec(compile(block, "page", "exec"), found)
    for name in ("labels", "before", "after", "probabilities"):
        assert name not in found or tuple(found[name].shape[-2:]) == SIZE
    for name in ("model", "fast", "layer", "crf"):
        assert name not in found or isinstance(found[name], torch.nn.Module)
