"""The benchmark beside other runtimes: what it writes, and what it says is missing."""

from __future__ import annotations

import csv
import importlib
import sys
from pathlib import Path

import pytest
import torch

from atrousx.models import deeplab_v3plus

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
OPTIONS = ["--extent", "33", "--seconds", "0", "--rounds", "1"]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    module = importlib.import_module("bench_deployment")
    build = lambda: deeplab_v3plus(2, layout="smp", width=0.1)  # noqa: E731
    networks = {"narrow": module.Network(build, lambda model: None)}
    monkeypatch.setattr(module, "NETWORKS", networks)

    def slow(case):
        raise module.Missing("takes half a minute")

    monkeypatch.setattr(module, "compiled", slow)
    return module


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_writes_every_side(bench, dtype, tmp_path: Path, monkeypatch, capsys):
    for name in ("onnx", "onnxruntime", "openvino"):
        monkeypatch.setitem(sys.modules, name, None)
    file = tmp_path / "deployment.csv"
    assert bench.main([*OPTIONS, "--dtype", dtype, "--csv", str(file)]) == 0
    assert "eager_channels_last_images_per_s" in capsys.readouterr().out
    with file.open(newline="") as lines:
        (row,) = csv.DictReader(lines)
    ran = ("atrousx", "eager_contiguous", "eager_channels_last")
    assert all(float(row[f"{side}_images_per_s"]) > 0 for side in ran)
    bound = 1e-4 if dtype == "float32" else 0.1
    assert all(float(row[f"{side}_error"]) < bound for side in ran)
    fastest = max(float(row[f"{side}_images_per_s"]) for side in ran[1:])
    assert float(row["ratio"]) == pytest.approx(
        float(row["atrousx_images_per_s"]) / fastest, rel=1e-2
    )
    assert row["onnxruntime_images_per_s"] == row["openvino_error"] == ""
    assert "openvino: pip install openvino" in row["missing"]
    assert "compile: takes half a minute" in row["missing"]


def test_every_side_has_its_own_layout(bench):
    case, is_public = bench.case_of(bench.NETWORKS["narrow"], bench.parse(OPTIONS))
    assert not is_public
    for layout in (torch.contiguous_format, torch.channels_last):
        network, image = case.converted(layout)
        assert image.is_contiguous(memory_format=layout)
        weight = network.network.backbone.layer1[0].conv2.weight
        assert weight.is_contiguous(memory_format=layout)


def test_exported_sides_agree_where_they_are_installed(bench, tmp_path: Path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    case, _ = bench.case_of(bench.NETWORKS["narrow"], bench.parse(OPTIONS))
    with torch.inference_mode():
        expected = case.original(case.image)["out"]
        found = bench.onnxruntime(case, tmp_path)()
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_a_network_that_is_not_there(bench, capsys):
    with pytest.raises(SystemExit):
        bench.main(["--networks", "u_net"])
    assert "no network's name holds that" in capsys.readouterr().err
