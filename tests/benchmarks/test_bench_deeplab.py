"""The models' benchmark: exact counts of operations, a run on a tiny image, CSV, bad names."""

import csv
import importlib
from pathlib import Path

import pytest
import torch
from torch import nn

import atrousx
from tests.models import torchvision_reference as reference

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("bench_deeplab")


def test_operations_by_hand(bench):
    model = nn.Sequential(
        atrousx.AtrousConv2d(2, 3, 3, padding=2, dilation=2), nn.Conv2d(3, 4, 1, stride=2)
    )
    # On 5 pixels the three taps of a row at rate 2 touch 3, 5 and 3 pixels.
    first = 2 * 3 * 2 * 25 * 9
    assert bench.operations(model, torch.empty(7, 2, 5, 5)) == (
        first + 2 * 4 * 3 * 9,
        pytest.approx(first * (11 / 15) ** 2 + 2 * 4 * 3 * 9),
    )


def test_summed_branches_are_counted(bench):
    head = atrousx.models.deeplab_v2(2, "vgg16", "aspp_s", multi_scale=False).classifier
    branch = 1024 * (512 * 9 + 1024 + 2)
    assert bench.operations(head, torch.empty(1, 512, 3, 5))[0] == 2 * 15 * 4 * branch


def test_prints_and_writes_csv(bench, monkeypatch, tmp_path: Path, capsys):
    build = lambda: atrousx.models.deeplab_v1(num_classes=2)  # noqa: E731
    monkeypatch.setattr(bench, "MODELS", {"v1_large_fov": (build, 4.84)})
    file = tmp_path / "deeplab.csv"
    options = ["--device", "cpu", "--extent", "17", "--seconds", "0", "--rounds", "1"]
    assert bench.main([*options, "--csv", str(file)]) == 0
    assert "v1_large_fov" in capsys.readouterr().out
    with file.open(newline="") as lines:
        (row,) = csv.DictReader(lines)
    assert row["parameters"] == str(sum(p.numel() for p in build().parameters()))
    assert float(row["live_gflop"]) < float(row["gflop"])
    assert all(
        float(row[f"{s}_images_per_s"]) > 0 for s in ("atrousx", "optimized", "torch", "paper")
    )
    assert row["torchvision_images_per_s"] == ""
    assert float(row["difference"]) < 1e-4


def test_ratios_by_hand(bench):
    speeds = {"v1_7x7_r4": (1.0, 1.44), "v1_large_fov": (4.0, 4.84), "v3": (9.0, "")}
    rows = [
        {"model": name, "paper_images_per_s": paper}
        | {f"{side}_images_per_s": measured for side in ("atrousx", "optimized", "torch")}
        for name, (measured, paper) in speeds.items()
    ]
    _, first, second = bench.ratios(rows).splitlines()
    assert first.split() == ["v1_7x7_r4", "0.25", "0.25", "0.25", "0.30"]
    assert second.split() == ["v1_large_fov", "1.00", "1.00", "1.00", "1.00"]
    assert bench.ratios(rows[1:]) == ""


def test_torchvisions_own_model_has_the_same_weights(bench):
    reference.segmentation()
    for depth, units in ((50, 6), (101, 23)):
        name = f"v3_resnet{depth}_torchvision"
        model = bench.MODELS[name][0]()
        twin = bench.torchvisions(name, model)
        assert len(twin.backbone.layer3) == units
        assert torch.equal(twin.classifier[4].weight, model.classifier[4].weight)
    assert bench.torchvisions("v3_resnet50_os8", model) is None


def test_an_unknown_model_is_named(bench, capsys):
    with pytest.raises(SystemExit):
        bench.parse(["--models", "v9"])
    assert "no model's name holds that" in capsys.readouterr().err
