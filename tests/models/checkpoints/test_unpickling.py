"""Files of torch.save that hold more than tensors, and files that want to execute code."""

import argparse
import collections
import datetime
import decimal
import io
import os
import pathlib
import pickle
import sys
import types
import uuid
import zipfile

import numpy as np
import pytest
import torch

from atrousx.models.checkpoints.files import read_weights
from atrousx.models.checkpoints.unpickling import ALLOWED, StandIn, load_pickled

WEIGHTS = {"conv.weight": torch.arange(4.0)}
# What training scripts save beside weights.
HARMLESS = {
    "namespace": argparse.Namespace(lr=0.1, out=pathlib.Path("/run"), device=torch.device("cpu")),
    "paths": [pathlib.PurePosixPath("/a"), pathlib.PureWindowsPath("C:/a"), pathlib.Path("b")],
    "ordered": collections.OrderedDict(a=1),
    "default": collections.defaultdict(list, a=[1]),
    "counter": collections.Counter("aab"),
    "deque": collections.deque([1, 2], maxlen=3),
    "dates": [datetime.datetime(2024, 1, 1, tzinfo=datetime.timezone.utc), datetime.date.min],
    "duration": datetime.timedelta(3),
    "NumPy scalars": [np.float64(0.5), np.int64(3), np.bool_(True), np.str_("a")],
    "NumPy arrays": [np.zeros((2, 3)), np.array(["a"]), np.array([{"a": 1}], dtype=object)],
    "NumPy records": np.zeros(2, dtype=[("a", "f4"), ("b", "i8")]),
    "NumPy types": [np.float32, np.dtype("f4")],
    "NumPy random state": np.random.RandomState(0).get_state(),
    "torch": [torch.float16, torch.Size([2, 3]), torch.device("cuda:1"), torch.__version__],
    "numbers": [1j, 2**70, decimal.Decimal("1.5"), True, None],
    "sets": [{1, 2}, frozenset([1]), range(3), slice(1, 2), b"bytes", bytearray(b"bytes")],
    "types": [int, dict, list],
    "id": uuid.UUID(int=1),
}
zipped_or_not = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])


def save(content, path, zipped):
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


@zipped_or_not
@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_things_beside_the_weights(name, zipped, tmp_path):
    path = save({"model": WEIGHTS, name: HARMLESS[name]}, tmp_path / "c.pth", zipped)
    weights = read_weights(path)
    assert torch.equal(weights["conv.weight"], WEIGHTS["conv.weight"])
    assert weights.found.ignored == (name,)


@zipped_or_not
@pytest.mark.parametrize("package", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_numpy_of_both_names(package, zipped, tmp_path):
    path = save({"model": WEIGHTS, "best": np.float64(1)}, tmp_path / "c.pth", zipped)
    for other in (b"numpy.core.multiarray", b"numpy._core.multiarray"):
        replace_in_pickle(path, b"c" + other, b"c" + package)
    assert list(read_weights(path)) == ["conv.weight"]


def replace_in_pickle(path, old, new):
    data = path.read_bytes()
    if not zipfile.is_zipfile(path):
        path.write_bytes(data.replace(old, new))
        return
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content.replace(old, new))


@zipped_or_not
def test_a_path_of_another_system(zipped, tmp_path):
    content = {"model": WEIGHTS, "path": pathlib.PureWindowsPath("C:/a")}
    path = save(content, tmp_path / "c.pth", zipped)
    replace_in_pickle(path, b"PureWindowsPath", b"WindowsPath")
    assert list(read_weights(path)) == ["conv.weight"]


@zipped_or_not
def test_the_arguments_of_lightning(zipped, tmp_path, monkeypatch):
    name = "pytorch_lightning.utilities.parsing"
    module = types.ModuleType(name)
    module.AttributeDict = type("AttributeDict", (dict,), {"__module__": name})
    for parent in ("pytorch_lightning", "pytorch_lightning.utilities", name):
        monkeypatch.setitem(sys.modules, parent, module)
    content = {"state_dict": WEIGHTS, "hyper_parameters": module.AttributeDict(lr=0.1)}
    path = save(content, tmp_path / "c.ckpt", zipped)
    assert read_weights(path).found.ignored == ("hyper_parameters",)


def test_no_name_of_the_table_calls_anything():
    for standing_in, name in ALLOWED:
        made = standing_in("/a", 3, [b"x"])
        assert isinstance(made, StandIn) or made in ({}, []), name


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@zipped_or_not
@pytest.mark.parametrize(
    ("function", "told"),
    [
        (os.system, r"os\.system \((posix|nt)\.system\)"),
        (eval, r"builtins\.eval"),
        (exec, r"builtins\.exec"),
        (getattr, r"builtins\.getattr"),
        (os.path.join, r"posixpath\.join"),
        (np.savetxt, r"numpy\.savetxt"),
        (torch.load, r"torch\.serialization\.load"),
        (argparse.FileType, r"argparse\.FileType"),
        (pathlib.Path.touch, r"pathlib.*\.Path\.touch|builtins\.getattr"),
    ],
)
def test_other_imports_are_refused_by_name(function, told, zipped, tmp_path):
    marker, before = tmp_path / "executed", torch.serialization.get_safe_globals()
    payload = Calls(function, f"touch {marker}")
    path = save({"model": WEIGHTS, "x": payload}, tmp_path / "c.pth", zipped)
    with pytest.raises(ValueError, match=rf"c\.pth wants to import ({told}), which could execute"):
        read_weights(path)
    assert not marker.exists()
    assert set(torch.serialization.get_safe_globals()) == set(before)


@pytest.mark.parametrize("protocol", range(6))
def test_bare_pickles_of_every_protocol(protocol, tmp_path):
    path = tmp_path / "c.pth"
    path.write_bytes(pickle.dumps({"x": Calls(os.system, "true")}, protocol))
    with pytest.raises(ValueError, match=r"wants to import os\.system"):
        read_weights(path)


def test_a_whole_module_is_refused(tmp_path):
    path = save(torch.nn.Linear(2, 2), tmp_path / "c.pth", True)
    with pytest.raises(
        ValueError, match=r"import torch\.nn\.modules\.linear\.Linear, .*state_dict"
    ):
        read_weights(path)


def test_reading_leaves_the_programs_own_list_alone(tmp_path):
    path = save({"model": WEIGHTS, "args": argparse.Namespace()}, tmp_path / "c.pth", True)
    with torch.serialization.safe_globals([argparse.Namespace]):
        read_weights(path)
        assert argparse.Namespace in torch.serialization.get_safe_globals()
        assert isinstance(torch.load(path)["args"], argparse.Namespace)


def test_other_archives_are_named(tmp_path):
    path = tmp_path / "c.pt"
    # What torch.jit.save writes.
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("c/data.pkl", "c/constants.pkl", "c/code/__torch__.py"):
            archive.writestr(name, b"")
    with pytest.raises(ValueError, match=r"is a TorchScript archive.*torch\.jit\.load.*state_dict"):
        load_pickled(path)
    np.savez(tmp_path / "c.npz", a=np.zeros(2))
    with pytest.raises(ValueError, match="archive of NumPy arrays"):
        read_weights(tmp_path / "c.npz")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS"),
        (b"\n<!doctype html><html>", "a page in HTML"),
        (b"\x1f\x8b\x08\x00", "compressed by gzip"),
        (b"\x89HDF\r\n", "HDF5"),
    ],
)
@pytest.mark.parametrize("name", ["c.pth", "c.safetensors"])
def test_what_is_no_weights_file_at_all(content, told, name, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is not a weights file but .*{told}"):
        read_weights(tmp_path / name)
