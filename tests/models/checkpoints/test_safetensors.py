"""safetensors files, whole and in shards."""

import json
import sys

import pytest
import torch

from atrousx.models.checkpoints.files import read_weights
from atrousx.models.checkpoints.safetensors_format import read_safetensors, write_safetensors

pytest.importorskip("safetensors")
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8)
WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "a.count": torch.tensor(3)}


def write(path, tensors, metadata=()):
    with open(path, "wb") as file:
        write_safetensors(file, tensors, dict(metadata))
    return path


def assert_same(found, expected):
    assert sorted(found) == sorted(expected)
    for key, value in expected.items():
        assert found[key].dtype == value.dtype
        assert torch.equal(found[key].float(), value.float()), key


def of_every_dtype():
    values = {str(dtype): torch.arange(6).view(2, 3).to(dtype) for dtype in DTYPES}
    views = {
        "transposed": torch.arange(12.0).view(3, 4).T,
        "empty": torch.empty(0, 3),
        "scalar": torch.ones(()),
    }
    return values | views


def test_every_dtype_returns(tmp_path):
    tensors, metadata = read_safetensors(write(tmp_path / "w", of_every_dtype(), [("é", "\n")]))
    assert_same(tensors, of_every_dtype())
    assert metadata == {"é": "\n"}


def test_without_the_package_the_error_names_it(tmp_path, monkeypatch):
    path = write(tmp_path / "w.safetensors", WEIGHTS)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match="pip install safetensors"):
        read_weights(path)


def test_the_content_decides_not_the_name(tmp_path):
    write(tmp_path / "a.pth", WEIGHTS)
    assert read_weights(tmp_path / "a.pth").kind == "a safetensors file"
    for zipped in (True, False):
        torch.save(WEIGHTS, tmp_path / "a.safetensors", _use_new_zipfile_serialization=zipped)
        assert read_weights(tmp_path / "a.safetensors").kind.startswith("a file of torch.save")


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "F4"},
        {"dtype": ["F32"]},
        {"shape": [2, 4]},
        {"shape": [-2, -3]},
        {"shape": [2.0, 3]},
        {"data_offsets": [0, 4000]},
        {"data_offsets": [24, 0]},
        {"data_offsets": [0]},
        {"shape": [0, 2**61, 2**61], "data_offsets": [0, 0]},
    ],
)
def test_a_damaged_header_is_an_error(change, tmp_path):
    entry = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]} | change
    text = json.dumps({"a": entry}).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(24))
    with pytest.raises(ValueError, match=r"w\.safetensors cannot be read as a safetensors file: ."):
        read_weights(path)


@pytest.mark.parametrize("change", [lambda whole: whole[:-1], lambda whole: whole + b"x"])
def test_a_file_that_is_cut_or_longer(change, tmp_path):
    path = write(tmp_path / "w.safetensors", WEIGHTS)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match="cannot be read as a safetensors file"):
        read_weights(path)


def shards(folder, change=()):
    write(folder / "model-00001-of-00002.safetensors", {"a.weight": WEIGHTS["a.weight"]})
    write(folder / "model-00002-of-00002.safetensors", {"a.count": WEIGHTS["a.count"]})
    names = {"a.weight": "model-00001-of-00002.safetensors"}
    names |= {"a.count": "model-00002-of-00002.safetensors"} | dict(change)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 32}, "weight_map": names}))
    return index


def test_shards_are_read_whole(tmp_path):
    index = shards(tmp_path)
    for given in (index, tmp_path, str(tmp_path)):
        assert_same(read_weights(given), WEIGHTS)


def test_shards_of_torch_save(tmp_path):
    torch.save(WEIGHTS, tmp_path / "pytorch_model-1.bin")
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(WEIGHTS, "pytorch_model-1.bin")}))
    assert_same(read_weights(index), WEIGHTS)


def test_a_folder_with_one_file_or_with_several(tmp_path):
    write(tmp_path / "model.safetensors", WEIGHTS)
    assert_same(read_weights(tmp_path), WEIGHTS)
    write(tmp_path / "other.safetensors", WEIGHTS)
    with pytest.raises(ValueError, match=r"with 2 \.safetensors files, name one: model\.safe"):
        read_weights(tmp_path)


@pytest.mark.parametrize(
    ("shard", "told"),
    [
        ("../w.safetensors", "'../w.safetensors', which leaves the folder"),
        ("/etc/passwd", "'/etc/passwd', which leaves the folder"),
        (r"..\w.safetensors", "which leaves the folder"),
        (r"C:\w.safetensors", "which leaves the folder"),
        ("model-3.safetensors", "'model-3.safetensors', which is not there"),
        ("a\0b", "which is not there"),
        ("", "which is not there"),
        ("model-00001-of-00002.safetensors", "places 'a.count' in .model-00001.* does not hold it"),
        ("model.safetensors.index.json", "model.safetensors.index.json"),
    ],
)
def test_a_shard_that_cannot_be_read_is_named(shard, told, tmp_path):
    index = shards(tmp_path, {"a.count": shard})
    with pytest.raises(ValueError, match=told):
        read_weights(index)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": {"a": 3}}', "[" * 10**5])
def test_an_index_that_is_none(content, tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(content)
    with pytest.raises(ValueError, match="index of shards"):
        read_weights(index)
