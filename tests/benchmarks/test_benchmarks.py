"""The benchmark runs, compares results, and counts only multiply-adds that touch data."""

import csv
import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def layers(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("layers")


@pytest.fixture
def bench_atrous(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("bench_atrous")


def test_live_fraction_is_counted_tap_by_tap(layers):
    for layer in layers.LAYERS:
        positions = range(layer.extent)
        live = sum(
            0 <= o - layer.padding + k * layer.dilation < layer.extent
            for o in positions
            for k in range(layer.kernel)
        )
        assert layer.live_fraction == pytest.approx((live / (layer.kernel * layer.extent)) ** 2)
        # With 'same' padding the last output position is the last input position.
        assert 2 * layer.padding == layer.dilation * (layer.kernel - 1)


def test_names_are_unique_and_quick_ones_exist(layers):
    names = [layer.name for layer in (*layers.LAYERS, *layers.choose("sweep", None))]
    assert len(set(names)) == len(names)
    assert [layer.name for layer in layers.choose("quick", None)] == list(layers.QUICK)
    assert [layer.name for layer in layers.choose("whole", "os16_r6,fc6_7x7")] == [
        "vgg_fc6_7x7_r4",
        "v3_aspp_os16_r6",
    ]


def test_the_plot_reads_forward_lines_by_map_and_rate(monkeypatch, tmp_path: Path):
    monkeypatch.syspath_prepend(BENCHMARKS)
    plot_rates = importlib.import_module("plot_rates")
    line = {"pass": "forward", "extent": "33", "memory_format": "contiguous"}
    rows = [
        {**line, "dilation": "18", "live_fraction": "0.4", "ratio": "2.0"},
        {**line, "dilation": "6", "live_fraction": "0.8", "ratio": "1.1"},
        {**line, "dilation": "18", "live_fraction": "0.4", "ratio": "9.0", "pass": "backward"},
    ]
    curves = plot_rates.read_curves(rows)
    assert curves == {33: {"contiguous": [(6, 1.1), (18, 2.0)], "ideal": [(6, 1.25), (18, 2.5)]}}
    pytest.importorskip("matplotlib")
    plot_rates.draw(curves, "a layer", tmp_path / "rates.png")
    assert (tmp_path / "rates.png").read_bytes().startswith(b"\x89PNG")


def test_bench_atrous_writes_a_table_and_csv(tmp_path: Path):
    # It runs in a separate process, because it permanently sets PyTorch's threads and cuDNN's
    # search.
    file = tmp_path / "new" / "atrous.csv"
    script = [sys.executable, str(BENCHMARKS / "bench_atrous.py"), "--device", "cpu"]
    layer = ["--quick", "--layers", "depthwise", "--memory-format", "channels_last"]
    options = ["--passes", "forward,inference,grad_input", "--seconds", "0.01", "--csv", str(file)]
    done = subprocess.run(
        [*script, *layer, *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("depthwise_r2 ") == 3
    assert "WRONG" not in done.stdout
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [row["pass"] for row in rows] == ["forward", "inference", "grad_input"]
    for row in rows:
        assert float(row["ratio"]) == pytest.approx(
            float(row["torch_ms"]) / float(row["atrousx_ms"]), rel=1e-2
        )
        assert row["memory_format"] == "channels_last"
        assert row["machine"]
        assert row["commit"]
        assert row["torch"]


def test_csv_rows_are_appended(bench_atrous, tmp_path: Path):
    file = tmp_path / "rows.csv"
    for number in (1, 2):
        bench_atrous.CsvWriter(file).write({"a": number, "b": "x,y"})
    assert file.read_text().splitlines() == ["a,b", '1,"x,y"', '2,"x,y"']


def test_wrong_results_are_called_wrong(bench_atrous, monkeypatch, capsys):
    def off_by_a_percent(*args: Any, backend: str, **options: Any) -> torch.Tensor:
        assert backend in ("native", "auto")
        return torch.nn.functional.conv2d(*args, **options) * 1.01

    monkeypatch.setattr(bench_atrous, "atrous_conv2d", off_by_a_percent)
    options = [
        "--device",
        "cpu",
        "--quick",
        "--layers",
        "depthwise",
        "--seconds",
        "0.01",
        "--passes",
        "forward",
    ]
    assert bench_atrous.main(options) == 1
    out = capsys.readouterr().out
    assert "WRONG RESULT: atrousx\n" in out
    assert "On 1 of them the result of atrousx is wrong" in out


def test_csv_with_other_columns_is_left_alone(bench_atrous, tmp_path: Path):
    file = tmp_path / "old.csv"
    file.write_text("a,b\n1,2\n")
    with pytest.raises(SystemExit, match="has other columns: a, b"):
        bench_atrous.CsvWriter(file).write({"a": 1, "c": 2})
    assert file.read_text() == "a,b\n1,2\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--layers resnext", "no layer's name holds that"),
        ("--passes sideways", "not sideways"),
        ("--device cpu --dtype tf32", "a precision of GPUs"),
    ],
)
def test_unknown_options_are_named(bench_atrous, options: str, message: str, capsys):
    with pytest.raises(SystemExit):
        bench_atrous.parse(options.split())
    assert message in capsys.readouterr().err
