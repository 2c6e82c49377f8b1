"""Comparisons of the papers: the networks, the runs and what is written about them."""

import csv
import importlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from atrousx import AtrousConv2d
from atrousx.models import deeplab_v1, deeplab_v2, deeplab_v3

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
NAMES = ("budgets", "networks", "runs", "summary", "tables")


@pytest.fixture
def reproduction(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    modules = {name: importlib.import_module(f"reproduction.{name}") for name in NAMES}
    return SimpleNamespace(main=importlib.import_module("reproduce").main, **modules)


def variants(reproduction, budget: str):
    found = getattr(reproduction.budgets, budget)
    return [variant for table in reproduction.tables.TABLES.values() for variant in table(found)]


# Networks.


@pytest.mark.parametrize("name", ["v1_large_fov_msc", "v2_aspp_l"])
def test_every_hidden_convolution_of_vgg_is_normalised(reproduction, name):
    budget = reproduction.budgets.QUICK
    [variant, *_] = [found for found in variants(reproduction, "QUICK") if found.name == name]
    model = reproduction.networks.network(variant, variant.recipe, 7, None)
    layers = list(model.modules())
    convs = {layer for layer in layers if isinstance(layer, AtrousConv2d)}
    pairs = [
        m for m in layers if isinstance(m, nn.Sequential) and isinstance(m[-1], nn.BatchNorm2d)
    ]
    last = {layer for layer in convs if layer.out_channels == 7}
    assert len(last) == (4 if name == "v2_aspp_l" else 1)
    assert {pair[0] for pair in pairs} == convs - last
    # The pretrained weights fit, and the head learns at its own rate.
    recipe = budget.recipe("pretraining")
    backbone = reproduction.networks.pretraining_network(recipe, 7).backbone.state_dict()
    model = reproduction.networks.network(variant, variant.recipe, 7, backbone)
    torch.testing.assert_close(dict(model.backbone.state_dict()), dict(backbone))
    groups = model.parameter_groups(lr=1.0)
    rates = {id(value): group["lr"] for group in groups for value in group["params"]}
    last = {m for m in model.modules() if getattr(m, "out_channels", 0) == 7}
    assert {rates[id(layer.weight)] for layer in last} == {10}


def test_image_pooling_that_is_left_out_adds_nothing(reproduction):
    model = deeplab_v3(num_classes=2, width=0.05).double().eval()
    reproduction.networks.leave_out_image_pooling(model)
    aspp = model.classifier[0]
    features = torch.randn(1, aspp.convs[0][0].in_channels, 9, 7, dtype=torch.float64)
    branches = torch.cat([branch(features) for branch in list(aspp.convs)[:-1]], dim=1)
    conv, norm, *_ = aspp.project
    projected = torch.nn.functional.conv2d(branches, conv.weight[:, : branches.shape[1]])
    torch.testing.assert_close(aspp(features), norm(projected).relu())


@pytest.mark.parametrize(
    ("build", "fields_of_view"),
    [
        # 8 rate (kernel - 1) + 32 pixels.
        (lambda: deeplab_v1(2, "7x7_r4", width=0.02), [128]),
        (lambda: deeplab_v1(2, "4x4_r4", width=0.02), [80]),
        (lambda: deeplab_v1(2, "4x4_r8", width=0.02), [128]),
        (lambda: deeplab_v1(2, "large_fov", width=0.02), [128]),
        (lambda: deeplab_v2(2, "vgg16", "aspp_s", width=0.02), [48, 64, 96, 128]),
    ],
)
def test_rates_are_halved_and_maps_keep_their_size(reproduction, build, fields_of_view):
    model = build().eval()
    images = torch.rand(1, 3, 65, 49)
    before = model.scores(images).shape
    reproduction.networks.divide_rates(model, 2)
    assert model.scores(images).shape == before
    wide = [m for m in model.classifier.modules() if getattr(m, "kernel_size", (1,))[0] > 1]
    assert [8 * m.dilation[0] * (m.kernel_size[0] - 1) + 32 for m in wide] == fields_of_view


@pytest.mark.parametrize("budget", ["CORES", "FULL", "QUICK"])
def test_names_are_unique_and_recipes_differ(reproduction, budget):
    found = {}
    for variant in variants(reproduction, budget):
        assert found.setdefault(variant.name, variant) == variant
    trained = [(variant.recipe, variant.image_pooling) for variant in found.values()]
    assert len({repr(one) for one in trained}) == len(trained)
    assert len({variant.recipe.crop for variant in found.values()}) == 1


# Numbers.


def test_mean_and_standard_error_by_hand(reproduction):
    mean, error = reproduction.summary.mean_and_error([1.0, 2.0, 6.0])
    assert mean == 3
    assert error == pytest.approx(math.sqrt((4 + 1 + 9) / 2) / math.sqrt(3))
    assert math.isnan(reproduction.summary.mean_and_error([1.0])[1])


# Runs.


def run(reproduction, folder: Path, table: str, *options: str):
    file = folder / f"{table}.csv"
    file.unlink(missing_ok=True)
    common = ["--out", str(folder), "--quick", "--device", "cpu", "--jobs", "1"]
    assert reproduction.main([table, *common, "--csv", str(file), *options]) == 0
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.mark.slow
def test_a_table_has_a_line_for_each_variant_and_view(reproduction, tmp_path: Path, capsys):
    rows = run(reproduction, tmp_path, "trimap", "--seeds", "2")
    names = ("v1_large_fov", "v1_large_fov_msc")
    shown = {(row["variant"], row["view"], row["trimap_width"]) for row in rows}
    widths = map(str, reproduction.summary.TRIMAP_WIDTHS)
    assert shown == {(n, v, w) for w in widths for n in names for v in ("single", "single_crf")}
    results = [
        json.loads((tmp_path / "runs" / names[0] / f"seed_{seed}" / "results.json").read_text())
        for seed in range(2)
    ]
    values = [100 * result["views"]["single"]["trimap"]["5"] for result in results]
    [row] = [
        r for r in rows if (r["variant"], r["view"], r["trimap_width"]) == (names[0], "single", "5")
    ]
    assert float(row["mean_iou"]) == pytest.approx(sum(values) / 2, abs=0.01)
    assert float(row["standard_error"]) == pytest.approx(abs(values[0] - values[1]) / 2, abs=0.01)

    # What is done is not done again; a run without results goes on from its last checkpoint.
    folder = tmp_path / "runs" / names[0] / "seed_0"
    [checkpoint] = folder.glob("iteration_*.pt")
    trained = checkpoint.stat().st_mtime_ns
    (folder / "results.json").unlink()
    again = run(reproduction, tmp_path, "trimap", "--seeds", "2")
    assert [row["mean_iou"] for row in again] == [row["mean_iou"] for row in rows]
    assert checkpoint.stat().st_mtime_ns == trained


@pytest.mark.slow
@pytest.mark.parametrize(("table", "lines"), [("v1", 8), ("v2", 10), ("v3", 11)])
def test_every_variant_trains(reproduction, tmp_path: Path, table, lines):
    rows = run(reproduction, tmp_path, table, "--seeds", "1")
    assert len(rows) == lines
    for row in rows:
        assert 0 <= float(row["mean_iou"]) <= 100
        assert float(row["images_per_s"]) > 0
        assert row["standard_error"] == ""


def test_a_folder_of_other_sizes_is_refused(reproduction, tmp_path: Path):
    (tmp_path / "sizes.txt").write_text("others")
    with pytest.raises(SystemExit, match=f"--out: {tmp_path}: holds runs of other sizes"):
        reproduction.main(["v1", "--out", str(tmp_path), "--quick", "--device", "cpu"])


def test_a_folder_that_cannot_be_written_is_named(reproduction, tmp_path: Path):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(SystemExit, match=r"--out: .*file"):
        reproduction.main(["v1", "--out", str(file / "x"), "--quick", "--device", "cpu"])


SLEEPERS = """
import os, signal, sys, time
from functools import partial
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from reproduce import in_processes

def sleep(folder, number):
    partial_name = Path(folder, f"{number}.partial")
    partial_name.write_text(str(os.getpid()))
    partial_name.rename(Path(folder, f"{number}.pid"))
    time.sleep(600)

if __name__ == "__main__":
    # A shell's background jobs ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    list(in_processes(2, [partial(sleep, sys.argv[2], number) for number in range(2)]))
"""


def wait_until(holds):
    end = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)


def is_running(process: int) -> bool:
    status = Path(f"/proc/{process}/stat")
    try:
        return status.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_the_command(number: signal.Signals, tmp_path: Path):
    script = tmp_path / "sleepers.py"
    script.write_text(SLEEPERS)
    environment = {**os.environ, "PYTHONPATH": str(BENCHMARKS.parent)}
    command = subprocess.Popen(
        [sys.executable, str(script), str(BENCHMARKS), str(tmp_path)], env=environment
    )
    wait_until(lambda: len(list(tmp_path.glob("*.pid"))) == 2)
    workers = [int(path.read_text()) for path in tmp_path.glob("*.pid")]
    assert all(map(is_running, workers))
    command.send_signal(number)
    command.wait()
    wait_until(lambda: not any(map(is_running, workers)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("v4 --out x", "invalid choice: 'v4'"),
        ("v1", "required: --out"),
        ("v1 --out x --seeds 0", "--seeds must be at least 1, got 0"),
        ("v1 --out x --quick --full", "not allowed with"),
    ],
)
def test_wrong_options_are_named(reproduction, options: str, message: str, capsys):
    with pytest.raises(SystemExit):
        reproduction.main(options.split())
    assert message in capsys.readouterr().err
