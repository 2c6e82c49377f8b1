"""``atrousx info FILE`` says what a file of weights is."""

import argparse

import pytest
import torch

import atrousx
from atrousx import models
from atrousx.cli import main

WIDTH = 0.02


def rows(capsys):
    return dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())


def told(path, capsys):
    assert main(["info", str(path)]) == 0
    return {name: value.strip() for name, value in rows(capsys).items()}


def test_a_checkpoint_of_a_training_script(tmp_path, capsys):
    path = tmp_path / "c.pth"
    model = models.deeplab_v3(3, layout="torchvision", width=WIDTH).half()
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    torch.save({"model_state": state, "ema": state, "args": argparse.Namespace()}, path)
    found = told(path, capsys)
    built, loaded = found.pop("built by"), found.pop("loaded by")
    parameters = sum(value.numel() for value in model.parameters())
    assert found == {
        "file": f"{path}, a file of torch.save",
        "layout": "deeplab_v3",
        "network": "DeepLab v3, told by keys and shapes",
        "classes": "3",
        "input": "RGB in 0..255, minus (123.675, 116.28, 103.53), divided by (58.395, 57.12, "
        "57.375), the builder's default",
        "parameters": f"{parameters:,} in {len(list(model.parameters()))} tensors",
        "dtype": "float16",
        "wrapping": "under 'model_state', prefix 'module.'",
        "average": "the file has averaged weights (EMA), too: ema=True takes them",
        "ignored": "ema, args",
    }
    assert repr(eval(built, {"atrousx": atrousx})) == repr(eval(loaded, {"atrousx": atrousx}))


def test_a_file_that_describes_itself(tmp_path, capsys):
    model = models.set_output_stride(models.deeplab_v3(3, width=WIDTH), 8)
    model.preprocess = models.Preprocess.caffe()
    models.save_weights(model, tmp_path / "w.safetensors")
    found = told(tmp_path / "w.safetensors", capsys)
    assert found["network"] == "DeepLab v3, told by the file's description"
    assert found["input"] == "BGR in 0..255, minus (104.008, 116.669, 122.675), as the file says"
    assert found["wrapping"] == "none"
    assert found["built by"].endswith("output_stride=16), then set_output_stride(model, 8)")


def test_what_weights_do_not_tell(tmp_path, capsys):
    torch.save(models.deeplab_v1(3, "4x4_r8", width=WIDTH).state_dict(), tmp_path / "w.pth")
    found = told(tmp_path / "w.pth", capsys)
    assert found["open"] == "fc6, which is '4x4_r4' or '4x4_r8': the weights do not tell"
    model = eval(found["loaded by"], {"atrousx": atrousx})
    assert repr(model) == repr(eval(found["built by"], {"atrousx": atrousx}))


def test_a_backbone(tmp_path, capsys):
    state = models.deeplab_v3(3, "resnet101", width=WIDTH).backbone.state_dict()
    torch.save({"ema": state}, tmp_path / "w.pth")
    found = told(tmp_path / "w.pth", capsys)
    assert found["network"] == "a backbone, not a whole DeepLab"
    assert found["input"].endswith("as ImageNet's weights expect")
    assert found["average"] == "these are averaged weights (EMA), the file has no others"
    assert found["built by"] == "model = atrousx.models.deeplab_v3(backbone='resnet101')"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no weights file"),
        (b"text", "c.pth is not a weights file"),
        ({"epoch": 3}, "must hold tensors by name, got int at 'epoch'"),
        ({"x": torch.ones(1)}, "c.pth: the weights are not those of any layout known here: x"),
        (
            {"decode_head.conv_seg.weight": torch.ones(1)},
            "these look like the keys of a network of mmsegmentation",
        ),
    ],
)
def test_bad_files_are_one_line(content, message, tmp_path, capsys):
    path = tmp_path / "c.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    assert main(["info", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("atrousx info: ")
    assert message in line


@pytest.mark.parametrize("name", ["xception65", "xception71"])
def test_timms_xception_is_a_backbone_of_v3plus(name, tmp_path, capsys):
    state = models.deeplab_v3plus(3, name, width=WIDTH).backbone.state_dict()
    torch.save(state, tmp_path / "w.pth")
    found = told(tmp_path / "w.pth", capsys)
    assert found["layout"] == "xception"
    assert found["input"].startswith("RGB in 0..255, minus (127.5, 127.5, 127.5)")
    assert found["built by"] == f"model = atrousx.models.deeplab_v3plus(backbone={name!r})"
