"""Damaged files of every format raise the documented errors and no others."""

import argparse
import io
import json
import random
import zipfile

import numpy as np
import pytest
import torch

from atrousx.models import deeplab_v1, from_weights, load_weights, save_weights
from atrousx.models.checkpoints.files import read_weights

FORMS = ("zip", "pickle", "old", "safetensors", "index")
# Where a mutation falls: the ends of a file hold its structure, the middle holds values.
END_BYTES = 4000


def narrow():
    return deeplab_v1(2, width=0.01)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of a small checkpoint in every format."""
    folder = tmp_path_factory.mktemp("whole")
    save_weights(narrow(), folder / "w.safetensors")
    save_weights(narrow(), folder / "w.pth")
    content = torch.load(folder / "w.pth")
    content |= {"args": argparse.Namespace(lr=0.1), "best": np.float64(0.5), "epoch": 3}
    for form in ("zip", "old"):
        torch.save(content, folder / form, _use_new_zipfile_serialization=form == "zip")
    names = dict.fromkeys(narrow().state_dict(), "w.safetensors")
    (folder / "index").write_text(json.dumps({"weight_map": names}))
    (folder / "w.safetensors").rename(folder / "safetensors")
    with zipfile.ZipFile(folder / "zip") as archive:
        (folder / "pickle").write_bytes(archive.read("zip/data.pkl"))
    return {form: (folder / form).read_bytes() for form in FORMS}


def write(path, form, data, whole):
    """Writes a file; a pickle into an archive with valid checksums, beside all other entries."""
    if form != "pickle":
        path.write_bytes(data)
        return
    with zipfile.ZipFile(io.BytesIO(whole["zip"])) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            target.writestr(name, data if name == "zip/data.pkl" else source.read(name))


def mutated(data, generator):
    data = bytearray(data)
    kind = generator.choice(("cut", "flip", "flip", "flip", "zero", "repeat", "random"))

    def place():
        anywhere = generator.randrange(len(data))
        near = min(generator.randrange(END_BYTES), len(data) - 1)
        return generator.choice((anywhere, near, len(data) - 1 - near))

    if kind == "cut":
        del data[place() :]
    elif kind == "flip":
        for _ in range(generator.choice((1, 1, 2, 8, 64))):
            data[place()] ^= 1 << generator.randrange(8)
    else:
        begin = place()
        end = min(len(data), begin + generator.choice((1, 4, 16, 256)))
        fill = {"zero": bytes(end - begin), "repeat": data[:256], "random": None}[kind]
        data[begin:end] = generator.randbytes(end - begin) if fill is None else fill
    return bytes(data)


def message(load, path):
    """Returns what the documented error says, or the file's name if there is none."""
    try:
        load(path)
    except ValueError as error:
        return str(error)
    return path.name


def assert_only_documented_errors(path):
    model = narrow()
    assert path.name in message(read_weights, path)
    for load in (read_weights, lambda p: load_weights(model, p), from_weights):
        assert "\n" not in message(load, path)


def damage(whole, form, count, folder):
    name = {"zip": "w.pth", "pickle": "w.pth", "old": "w.pth", "index": "w.safetensors.index.json"}
    path = folder / name.get(form, "v.safetensors")
    (folder / "w.safetensors").write_bytes(whole["safetensors"])
    for seed in range(count):
        write(path, form, mutated(whole[form], random.Random(f"{form} {seed}")), whole)
        assert_only_documented_errors(path)


@pytest.mark.parametrize("form", FORMS)
def test_the_whole_files_load(form, whole, tmp_path):
    path = tmp_path / ("w.safetensors.index.json" if form == "index" else "w.pth")
    (tmp_path / "w.safetensors").write_bytes(whole["safetensors"])
    write(path, form, whole[form], whole)
    assert repr(from_weights(path)) == repr(narrow())


@pytest.mark.parametrize("form", FORMS)
def test_damaged_files_raise_documented_errors(form, whole, tmp_path):
    damage(whole, form, 30, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("form", FORMS)
def test_many_damaged_files_raise_documented_errors(form, whole, tmp_path):
    damage(whole, form, 3000, tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"arguments": {"num_classes": 7}}, r"deeplab_v1\(num_classes=7, .*\), but its tensors"),
        ({"arguments": {"width": 1e9}}, "describes deeplab_v1"),
        ({"arguments": {"width": float("nan")}}, "describes deeplab_v1"),
        ({"arguments": {"width": "wide"}}, "describes deeplab_v1"),
        ({"arguments": {"pooling": "4x4"}}, "a network that cannot be built: pooling must be"),
        ({"arguments": {"depth": 3}}, "by arguments that v1 lacks"),
        ({"arguments": {"fc6": {}}}, "by arguments that v1 lacks"),
        ({"arguments": None}, "by arguments that v1 lacks"),
        ({"version": "v3"}, "by arguments that v3 lacks"),
        ({"preprocess": {}}, "no valid preprocessing"),
        ({"preprocess": {"mean": [1, 2], "std": [1, 2], "bgr": True}}, "no valid preprocessing"),
        ({"output_stride": "8"}, "describes the output stride '8'"),
        ({"output_stride": 8}, "a network that cannot be built: model must be a DeepLabV3"),
    ],
)
def test_a_damaged_description_is_named(change, told, tmp_path):
    save_weights(narrow(), tmp_path / "w.pth")
    content = torch.load(tmp_path / "w.pth")
    arguments = change.get("arguments", {})
    merged = None if arguments is None else content["network"]["arguments"] | arguments
    content["network"] |= change | {"arguments": merged}
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=told):
        from_weights(tmp_path / "w.pth")
