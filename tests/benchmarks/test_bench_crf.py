"""The dense CRF's benchmark runs, names the libraries that are missing, and rejects bad sizes."""

import csv
import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def bench_crf(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("bench_crf")


def test_prints_stages_and_writes_csv(bench_crf, monkeypatch, tmp_path: Path, capsys):
    monkeypatch.setattr(bench_crf, "original_densecrf", None)
    monkeypatch.setattr(bench_crf, "MonaiCRF", None)
    file = tmp_path / "crf.csv"
    options = ["--device", "cpu", "--sizes", "24x16x3", "--threads", "1,2", "--rounds", "1"]
    assert bench_crf.main([*options, "--seconds", "0.01", "--csv", str(file)]) == 0
    out = capsys.readouterr().out
    assert out.count("pydensecrf is not installed: not run") == 2
    assert out.count("MONAI's CRF is not installed: not run; build monai from its source") == 2
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert {row["threads"] for row in rows} == {"1", "2"}
    stages = [row["stage"] for row in rows if row["threads"] == "2"]
    assert stages[0] == "all-in"
    assert "lattice, bilateral" in stages
    assert not any("pydensecrf" in row["stage"] for row in rows)
    assert all(float(row["ms"]) > 0 for row in rows)


@pytest.mark.parametrize("sizes", ["500x375", "0x4x2", "axbxc"])
def test_bad_sizes_are_named(bench_crf, sizes, capsys):
    with pytest.raises(SystemExit):
        bench_crf.parse(["--sizes", sizes])
    assert "WIDTHxHEIGHTxLABELS" in capsys.readouterr().err
