"""The upsampling benchmark runs, measures memory, detects wrong results, rejects bad options."""

import csv
import importlib
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def bench_upsample(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    module = importlib.import_module("bench_upsample")
    monkeypatch.setitem(module.SHAPES, "test", ((1, 3, 5, 6), (9, 7)))
    return module


def test_prints_every_operator_and_writes_csv(bench_upsample, tmp_path: Path, capsys):
    file = tmp_path / "upsample.csv"
    options = ["--device", "cpu", "--shapes", "test", "--seconds", "0.01", "--csv", str(file)]
    assert bench_upsample.main([*options, "--memory-format", "channels_last"]) == 0
    assert "Of 6 lines atrousx is faster on" in capsys.readouterr().out
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [(row["operator"], row["pass"]) for row in rows] == [
        ("bilinear", "forward"),
        ("bilinear", "backward"),
        ("argmax", "forward"),
        ("cross_entropy", "forward"),
        ("cross_entropy", "training"),
        ("softmax_add", "forward"),
    ]
    # 90 logits and 189 results of 4 bytes and labels of 8 bytes, each moved once; sums twice.
    assert [int(row["bytes"]) for row in rows] == [1116, 1116, 864, 864, 1224, 1872]
    for row in rows:
        assert float(row["ratio"]) == pytest.approx(
            float(row["torch_ms"]) / float(row["atrousx_ms"]), rel=1e-2, abs=1e-3
        )
        assert float(row["atrousx_error"]) < 1e-5


def test_memory_of_a_call_is_seen(bench_upsample):
    peak = bench_upsample.peak_memory(lambda: torch.ones(64 << 20), torch.device("cpu"))
    if peak == peak:  # NaN if the system does not tell
        assert 250 < peak < 300


def test_wrong_results_are_called_wrong(bench_upsample, monkeypatch, capsys):
    def off_by_a_percent(x, size):
        return torch.nn.functional.interpolate(x, size, mode="bilinear") * 1.01

    monkeypatch.setattr(bench_upsample.ops, "upsample_bilinear2d", off_by_a_percent)
    options = ["--device", "cpu", "--shapes", "test", "--operators", "bilinear", "--seconds", "0"]
    assert bench_upsample.main(options) == 1
    assert capsys.readouterr().out.count("WRONG RESULT") == 2


@pytest.mark.parametrize("options", ["--operators nearest", "--shapes huge"])
def test_unknown_options_are_named(bench_upsample, options, capsys):
    with pytest.raises(SystemExit):
        bench_upsample.parse(options.split())
    assert "knows" in capsys.readouterr().err
