"""save_weights: files that from_weights and torchvision read."""

import json
import os

import pytest
import torch
from torch import nn

from atrousx.models import (
    Preprocess,
    deeplab_v1,
    deeplab_v2,
    deeplab_v3,
    deeplab_v3plus,
    from_weights,
    save_weights,
    set_output_stride,
)
from atrousx.models.checkpoints.files import read_weights
from atrousx.models.checkpoints.safetensors_format import read_safetensors
from tests.models import torchvision_reference as reference

NARROW = 0.02
MODELS = {
    "v1": lambda: deeplab_v1(2, "4x4_r8", pooling="2x2", multi_scale_features=True, width=NARROW),
    "v2": lambda: deeplab_v2(2, head="aspp_s", multi_scale=False, width=NARROW),
    "v2 vgg": lambda: deeplab_v2(2, "vgg16", "large_fov", width=NARROW),
    "v3": lambda: deeplab_v3(2, aux=True, width=NARROW),
    "grid": lambda: deeplab_v3(2, output_stride=8, multi_grid=(2, 4, 6), width=NARROW),
    "cascade": lambda: deeplab_v3(2, head="cascade", blocks=6, output_stride=32, width=NARROW),
    "torchvision": lambda: deeplab_v3(2, layout="torchvision", width=NARROW),
    "smp": lambda: deeplab_v3(2, layout="smp", width=NARROW),
    "vainf": lambda: deeplab_v3(2, layout="vainf", output_stride=8, width=NARROW),
    "mmseg": lambda: deeplab_v3(2, layout="mmseg", width=NARROW),
    "mobile": lambda: deeplab_v3(2, "mobilenet_v2", width=NARROW),
    "v3+": lambda: deeplab_v3plus(2, multi_grid=(1, 1, 2), aux=True, width=NARROW),
    "v3+ xception": lambda: deeplab_v3plus(2, "xception71", output_stride=8, width=NARROW),
    "v3+ plain": lambda: deeplab_v3plus(2, separable=False, width=NARROW),
    "v3+ vainf": lambda: deeplab_v3plus(2, "mobilenet_v2", layout="vainf", width=NARROW),
    "v3+ smp": lambda: set_output_stride(deeplab_v3plus(2, layout="smp", width=NARROW), 8),
    "v3+ mmseg": lambda: deeplab_v3plus(2, layout="mmseg", width=NARROW),
    "denser": lambda: set_output_stride(deeplab_v3(2, width=NARROW), 8),
}


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
@pytest.mark.parametrize("name", MODELS)
def test_from_weights_needs_no_options(name, suffix, tmp_path):
    model = MODELS[name]()
    model.preprocess = Preprocess((1.0, 2.0, 3.0), (0.1, 0.2, 0.3), bgr=True)
    save_weights(model, tmp_path / f"w{suffix}")
    same = from_weights(tmp_path / f"w{suffix}")
    assert repr(same) == repr(model)
    assert same.state_dict().keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        assert torch.equal(same.state_dict()[key], value)
    assert torch.equal(same.preprocess.std, model.preprocess.std)
    # Only the file's name stays, no part of a file beside it.
    assert os.listdir(tmp_path) == [f"w{suffix}"]


def test_a_safetensors_file_describes_its_network_in_json(tmp_path):
    model = MODELS["denser"]().to(torch.bfloat16)
    save_weights(model, tmp_path / "w.safetensors")
    tensors, metadata = read_safetensors(tmp_path / "w.safetensors")
    assert tensors["backbone.conv1.weight"].dtype == torch.bfloat16
    network = json.loads(metadata["network"])
    assert network["version"] == "v3"
    assert network["arguments"]["output_stride"] == 16
    assert network["output_stride"] == 8


def test_options_win_over_the_description(tmp_path):
    save_weights(MODELS["denser"](), tmp_path / "w.pth")
    built = deeplab_v3(2, output_stride=32, width=NARROW)
    assert repr(from_weights(tmp_path / "w.pth", output_stride=32)) == repr(built)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_torchvision_loads_its_layout(suffix, tmp_path):
    model = deeplab_v3(21, layout="torchvision", aux=True)
    path = tmp_path / f"w{suffix}"
    save_weights(model, path, layout="torchvision")
    weights = torch.load(path) if suffix == ".pth" else dict(read_weights(path))
    twin = reference.deeplab("resnet50")
    twin.load_state_dict(weights, strict=True)
    assert torch.equal(twin.classifier[4].weight, model.classifier[4].weight)


def test_what_torchvision_does_not_have(tmp_path):
    for name in ("v1", "v3", "torchvision"):
        with pytest.raises(ValueError, match=r"at width 1, the model is deeplab_v[13]\(num_clas"):
            save_weights(MODELS[name](), tmp_path / "w.pth", layout="torchvision")
    assert not list(tmp_path.iterdir())


def test_what_is_refused(tmp_path):
    model = MODELS["v1"]()
    with pytest.raises(TypeError, match="a DeepLab of this package, got Linear"):
        save_weights(nn.Linear(1, 1), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"must end in \.safetensors, \.pth, \.pt, got 'w\.bin'"):
        save_weights(model, tmp_path / "w.bin")
    with pytest.raises(ValueError, match="layout must be 'atrousx' or 'torchvision', got 'caffe'"):
        save_weights(model, tmp_path / "w.pth", layout="caffe")
    model.classifier[0].dilation = (5, 5)
    with pytest.raises(ValueError, match="no builder of this package makes this model"):
        save_weights(model, tmp_path / "w.pth")
    with pytest.raises(FileNotFoundError):
        save_weights(MODELS["v1"](), tmp_path / "nowhere" / "w.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_write_that_fails_leaves_the_old_file(suffix, tmp_path, monkeypatch):
    path = tmp_path / f"w{suffix}"
    save_weights(MODELS["v1"](), path)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_weights(MODELS["v2 vgg"](), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
